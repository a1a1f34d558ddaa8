/* Hold a deadline by effort: lower it at once when a run was late, raise it slowly while there is time to spare.
 *
 *   deadline control = deadline_of(milliseconds, least, most);
 *   for (;;) {
 *     double begun = now_ms();
 *     model_run(model, image, control.effort, logits, gates);
 *     deadline_took(&control, now_ms() - begun);
 *   }
 *
 * `least` is the effort of the cheapest run that is still of use, and `most` the dearest: choose them where effort still
 * changes the time. A late run costs a quarter of the way between them, at least, and more the later it was; a run that
 * took less than nine tenths of the deadline gives a hundredth back. What is lost has to be won first, also where it was
 * more than could be lowered, so that in the long run at most one run in twenty-six is late, whatever the images, while
 * `least` itself is in time. C99; takes no clock of its own, so that any clock will do.
 */
#ifndef EDGEVIT_DEADLINE_H_
#define EDGEVIT_DEADLINE_H_

typedef struct {
  double deadline_ms;
  float effort, least, most;
  float level; /* the effort, or how far below `least` it would be: at most as far as `most` is above */
  long runs, late;
} deadline;

static inline deadline deadline_of(double deadline_ms, float least, float most) {
  deadline made;
  made.deadline_ms = deadline_ms;
  made.least = least;
  made.most = most;
  made.effort = made.level = most;
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
    control->level -= range * (float)(over < 0.25 ? 0.25 : over > 1 ? 1 : over);
  } else if (ms < 0.9 * control->deadline_ms) {
    control->level += range * 0.01f;
  }
  if (control->level < control->least - range) control->level = control->least - range;
  if (control->level > control->most) control->level = control->most;
  control->effort = control->level < control->least ? control->least : control->level;
}

#endif /* EDGEVIT_DEADLINE_H_ */
