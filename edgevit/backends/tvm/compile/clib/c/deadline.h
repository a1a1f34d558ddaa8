/* Hold a deadline by effort: lower it at once when a run was late, raise it slowly while there is time to spare.
 *
 *   deadline control = deadline_of(milliseconds, least, most);
 *   for (;;) {
 *     double begun = now_ms();
 *     model_run(model, image, control.effort, logits, gates);
 *     deadline_took(&control, now_ms() - begun);
 *   }
 *
 * `least` is the effort of the cheapest run that is still of use, and `most` the dearest: two of the efforts in the
 * bundle's manifest. A late run costs a fifth of the way between them, at least, and more the later it was; a run that
 * took less than nine tenths of the deadline gives a fiftieth back. So the loop stays just below the deadline, and of the
 * runs that must be late for it to notice there are few. C99; takes no clock of its own, so that any clock will do.
 */
#ifndef EDGEVIT_DEADLINE_H_
#define EDGEVIT_DEADLINE_H_

typedef struct {
  double deadline_ms;
  float effort, least, most;
  long runs, late;
} deadline;

static inline deadline deadline_of(double deadline_ms, float least, float most) {
  deadline made;
  made.deadline_ms = deadline_ms;
  made.least = least;
  made.most = most;
  made.effort = most;
  made.runs = made.late = 0;
  return made;
}

/* Tell how long the last run took. */
static inline void deadline_took(deadline *control, double ms) {
  const float range = control->most - control->least;
  control->runs += 1;
  if (ms > control->deadline_ms) {
    const double over = ms / control->deadline_ms - 1;
    control->late += 1;
    control->effort -= range * (float)(over < 0.2 ? 0.2 : over > 1 ? 1 : over);
  } else if (ms < 0.9 * control->deadline_ms) {
    control->effort += range * 0.02f;
  }
  if (control->effort < control->least) control->effort = control->least;
  if (control->effort > control->most) control->effort = control->most;
}

#endif /* EDGEVIT_DEADLINE_H_ */
