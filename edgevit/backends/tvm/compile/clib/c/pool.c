/* Threads that share out a kernel: a kernel asks for its parts to be run at once, and may wait for all in the midst. */
typedef struct team {
  void *group;
  int32_t count;
} team;

typedef int part(int index, team *group, void *data);

int TVMBackendParallelLaunch(part *work, void *data, int count);
int TVMBackendParallelBarrier(int index, team *group);

static __thread model_state *running; /* the model of this thread */

static void pause_a_little(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  __asm__ volatile("yield");
#endif
}

/* Where threads have fewer CPUs than they are, or other work has one, those that wait must not keep it from others. */
static void wait_a_little(int *spins) {
  if (++*spins % BETWEEN) pause_a_little();
  else sched_yield();
}

/* Wait for work by looking for it, about a millisecond long, then asleep. */
static int next_work(pool *group, int done) {
  for (int spins = 0; spins < SPINS;) {
    if (__atomic_load_n(&group->turn, __ATOMIC_ACQUIRE) != done) return 1;
    wait_a_little(&spins);
  }
  pthread_mutex_lock(&group->mutex);
  __atomic_add_fetch(&group->asleep, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(&group->turn, __ATOMIC_SEQ_CST) == done) pthread_cond_wait(&group->wake, &group->mutex);
  __atomic_sub_fetch(&group->asleep, 1, __ATOMIC_RELAXED);
  pthread_mutex_unlock(&group->mutex);
  return 1;
}

/* Touch more of a stack than any kernel needs, so that what a run touches later is what it was given. */
static void touch_stack(void) {
  volatile char pages[1 << 14];
  for (size_t i = 0; i < sizeof pages; i += 1 << 10) pages[i] = 0;
}

static void *worker(void *given) {
  helper *own = given;
  pool *group = own->group;
  team together;
  touch_stack();
  for (int done = own->turn; next_work(group, done);) {
    done = __atomic_load_n(&group->turn, __ATOMIC_ACQUIRE);
    if (group->work == NULL) return NULL;
    together.group = group;
    together.count = group->threads;
    if (group->work(own->index, &together, group->data)) __atomic_store_n(&group->fault, 1, __ATOMIC_RELAXED);
    __atomic_sub_fetch(&group->busy, 1, __ATOMIC_RELEASE);
  }
  return NULL;
}

/* Hand the other threads their work; NULL ends them. */
static void hand_out(pool *group, part *work, void *data) {
  group->work = work;
  group->data = data;
  group->fault = 0;
  group->arrived = 0;
  __atomic_store_n(&group->busy, group->threads - 1, __ATOMIC_RELAXED);
  __atomic_add_fetch(&group->turn, 1, __ATOMIC_SEQ_CST);
  /* Whoever is about to sleep has said so before it looked at the turn, for the last time. */
  if (!__atomic_load_n(&group->asleep, __ATOMIC_SEQ_CST)) return;
  pthread_mutex_lock(&group->mutex);
  pthread_cond_broadcast(&group->wake);
  pthread_mutex_unlock(&group->mutex);
}

static int launch(part *work, void *data, int count) {
  pool *group = &running->group;
  team together;
  int fault, spins = 0;
  (void)count; /* always 0: as many parts as there are threads */
  together.group = group;
  together.count = group->threads;
  if (group->threads == 1) return work(0, &together, data);
  hand_out(group, work, data);
  fault = work(0, &together, data);
  while (__atomic_load_n(&group->busy, __ATOMIC_ACQUIRE)) wait_a_little(&spins);
  return fault || group->fault;
}

static int barrier(int index, team *together) {
  pool *group = together->group;
  const int turn = __atomic_load_n(&group->passed, __ATOMIC_ACQUIRE);
  int spins = 0;
  (void)index;
  if (__atomic_add_fetch(&group->arrived, 1, __ATOMIC_ACQ_REL) == together->count) {
    __atomic_store_n(&group->arrived, 0, __ATOMIC_RELAXED);
    __atomic_add_fetch(&group->passed, 1, __ATOMIC_RELEASE);
  } else {
    while (__atomic_load_n(&group->passed, __ATOMIC_ACQUIRE) == turn) wait_a_little(&spins);
  }
  return 0;
}

/* Kernels reach both by these pointers. */
extern int (*__TVMBackendParallelLaunch)(part *, void *, int);
extern int (*__TVMBackendParallelBarrier)(int, team *);
int (*__TVMBackendParallelLaunch)(part *, void *, int) = launch;
int (*__TVMBackendParallelBarrier)(int, team *) = barrier;

int model_start(model_state *model, int threads) {
  pool *group;
  int status = MODEL_OK;
  if (model == NULL) return MODEL_NULL;
  if (threads < 1 || threads > MODEL_MOST_THREADS) return MODEL_THREADS;
  group = &model->group;
  if (group->threads > 1) {
    hand_out(group, NULL, NULL);
    for (int i = 0; i + 1 < group->threads; ++i) pthread_join(group->helpers[i].thread, NULL);
    pthread_cond_destroy(&group->wake);
    pthread_mutex_destroy(&group->mutex);
  }
  group->threads = 1;
  if (threads == 1) return MODEL_OK;
  if (pthread_mutex_init(&group->mutex, NULL)) return MODEL_THREADS;
  if (pthread_cond_init(&group->wake, NULL)) {
    pthread_mutex_destroy(&group->mutex);
    return MODEL_THREADS;
  }
  for (; group->threads < threads; ++group->threads) {
    helper *one = &group->helpers[group->threads - 1];
    one->index = group->threads;
    one->turn = group->turn;
    one->group = group;
    if (pthread_create(&one->thread, NULL, worker, one)) {
      status = MODEL_THREADS;
      break;
    }
  }
  if (status == MODEL_OK) return status;
  if (group->threads > 1) return (void)model_start(model, 1), status;
  pthread_cond_destroy(&group->wake);
  pthread_mutex_destroy(&group->mutex);
  return status;
}
