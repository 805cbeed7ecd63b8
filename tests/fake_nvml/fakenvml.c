// A test double of libnvidia-ml.so.1. Its state is a file that every process maps: FAKE_NVML_STATE names it.
// It copies the real library's protocol (structure versions, size probes, error codes, dead handles), not its timing.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "layout.h"

#define API __attribute__((visibility("default")))
#define ABSENT_ID 0xFFFFFFFFu

typedef unsigned int u32;
typedef unsigned long long u64;
typedef int Return;

enum {
  OK = 0,
  UNINITIALIZED = 1,
  INVALID_ARGUMENT = 2,
  NOT_SUPPORTED = 3,
  NOT_FOUND = 6,
  INSUFFICIENT_SIZE = 7,
  DRIVER_NOT_LOADED = 9,
  TIMEOUT = 10,
  VERSION_MISMATCH = 25,
};

typedef struct {
  u32 index, generation;
} Device;  // what the opaque nvmlDevice_t points at

static Device devices[MAX_GPUS];
static State *state;
static int references;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static u64 now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void nap_us(u64 us) {
  struct timespec t = {us / 1000000, us % 1000000 * 1000};
  nanosleep(&t, NULL);
}

static void count(int function) {
  __atomic_add_fetch(&state->calls[function], 1, __ATOMIC_RELAXED);
  if (state->delay_us[function]) nap_us(state->delay_us[function]);
}

static Return enter(int function) {
  if (!state || !references) return UNINITIALIZED;
  count(function);
  return OK;
}

static Return enter_device(int function, Device *device, Gpu **gpu) {
  Return r = enter(function);
  if (r) return r;
  if (device < devices || device >= devices + MAX_GPUS || device->index >= state->gpu_count) return INVALID_ARGUMENT;
  if (device->generation != state->generation) return UNINITIALIZED;
  *gpu = &state->gpu[device->index];
  return (*gpu)->lost ? (*gpu)->lost : (*gpu)->ret[function];
}

#define SYSTEM(function)           \
  {                                \
    Return r_ = enter(F_##function); \
    if (r_) return r_;             \
  }
#define DEVICE(function)                               \
  Gpu *g;                                              \
  {                                                    \
    Return r_ = enter_device(F_##function, d, &g);     \
    if (r_) return r_;                                 \
  }
#define ANSWER(name, function, type, expression) \
  API Return nvmlDeviceGet##name(Device *d, type *v) { \
    DEVICE(function)                             \
    *v = expression;                             \
    return OK;                                   \
  }
#define TEXT(name, function, source)                               \
  API Return nvmlDeviceGet##name(Device *d, char *s, u32 n) {      \
    DEVICE(function)                                               \
    if (strlen(source) + 1 > n) return INSUFFICIENT_SIZE;          \
    strcpy(s, source);                                             \
    return OK;                                                     \
  }

// ---- start and end

static Return map_state(void) {
  const char *path = getenv("FAKE_NVML_STATE");
  int fd = path ? open(path, O_RDWR) : -1;
  if (fd < 0) return DRIVER_NOT_LOADED;
  State *mapped = mmap(NULL, sizeof(State), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (mapped == MAP_FAILED || mapped->magic != FAKE_MAGIC) return DRIVER_NOT_LOADED;
  state = mapped;
  return OK;
}

static Return initialize(void) {
  pthread_mutex_lock(&mutex);
  Return r = state ? OK : map_state();
  if (!r) {
    count(F_Init);
    r = state->init_ret;
  }
  if (!r && !references++)
    for (u32 i = 0; i < MAX_GPUS; i++) devices[i] = (Device){i, state->generation};
  pthread_mutex_unlock(&mutex);
  return r;
}

API Return nvmlInit_v2(void) { return initialize(); }

API Return nvmlInitWithFlags(u32 flags) {
  (void)flags;
  return initialize();
}

API Return nvmlShutdown(void) {
  SYSTEM(Shutdown)
  pthread_mutex_lock(&mutex);
  references--;
  pthread_mutex_unlock(&mutex);
  return OK;
}

API const char *nvmlErrorString(Return r) {
  static __thread char text[32];
  snprintf(text, sizeof text, "fake NVML error %d", r);
  return text;
}

API Return nvmlSystemGetDriverVersion(char *s, u32 n) {
  SYSTEM(Driver)
  snprintf(s, n, "%s", state->driver_version);
  return OK;
}

API Return nvmlSystemGetNVMLVersion(char *s, u32 n) {
  SYSTEM(Driver)
  snprintf(s, n, "%s", state->nvml_version);
  return OK;
}

API Return nvmlSystemGetCudaDriverVersion(int *v) {
  SYSTEM(Driver)
  *v = state->cuda_version;
  return OK;
}

API Return nvmlSystemGetCudaDriverVersion_v2(int *v) { return nvmlSystemGetCudaDriverVersion(v); }

API Return nvmlSystemGetProcessName(u32 pid, char *s, u32 n) {
  SYSTEM(ProcessName)
  char path[64];
  snprintf(path, sizeof path, "/proc/%u/comm", pid);
  FILE *file = fopen(path, "r");
  if (!file) return NOT_FOUND;
  if (!fgets(s, n, file)) s[0] = 0;
  fclose(file);
  s[strcspn(s, "\n")] = 0;
  return OK;
}

// ---- handles

static Return handle(int function, u32 i, Device **device) {
  if (i >= state->gpu_count) return INVALID_ARGUMENT;
  if (state->gpu[i].lost) return state->gpu[i].lost;
  if (state->gpu[i].ret[function]) return state->gpu[i].ret[function];
  *device = &devices[i];
  return OK;
}

API Return nvmlDeviceGetCount_v2(u32 *n) {
  SYSTEM(Count)
  *n = state->gpu_count;
  return OK;
}

API Return nvmlDeviceGetHandleByIndex_v2(u32 i, Device **d) {
  SYSTEM(HandleByIndex)
  return handle(F_HandleByIndex, i, d);
}

API Return nvmlDeviceGetHandleByUUID(const char *uuid, Device **d) {
  SYSTEM(HandleByUuid)
  for (u32 i = 0; i < state->gpu_count; i++)
    if (!strcmp(uuid, state->gpu[i].uuid)) return handle(F_HandleByUuid, i, d);
  return NOT_FOUND;
}

API Return nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, Device **d) {
  SYSTEM(HandleByPciBusId)
  for (u32 i = 0; i < state->gpu_count; i++)
    if (!strcasecmp(bus_id, state->gpu[i].bus_id)) return handle(F_HandleByPciBusId, i, d);
  return NOT_FOUND;
}

// ---- identity and modes

TEXT(Name, Name, g->name)
TEXT(UUID, Uuid, g->uuid)
TEXT(VbiosVersion, Vbios, "94.02.26.08.1c")
ANSWER(Index, Index, u32, d->index)
ANSWER(MinorNumber, MinorNumber, u32, d->index)
ANSWER(Brand, Brand, u32, g->brand)
ANSWER(Architecture, Architecture, u32, g->arch)
ANSWER(PersistenceMode, Persistence, u32, g->persistence)
ANSWER(DisplayActive, Display, u32, g->display)
ANSWER(DisplayMode, Display, u32, g->display)
ANSWER(ComputeMode, ComputeMode, u32, 0)
ANSWER(AccountingMode, AccountingMode, u32, 0)
ANSWER(MaxMigDeviceCount, MigMode, u32, g->mig ? 7 : 0)

API Return nvmlDeviceGetSerial(Device *d, char *s, u32 n) {
  DEVICE(Serial)
  if (!g->serial[0]) return NOT_SUPPORTED;
  snprintf(s, n, "%s", g->serial);
  return OK;
}

API Return nvmlDeviceGetCudaComputeCapability(Device *d, int *major, int *minor) {
  DEVICE(CudaCapability)
  *major = g->cc_major;
  *minor = g->cc_minor;
  return OK;
}

typedef struct {
  char legacy_bus_id[16];
  u32 domain, bus, device, device_id, subsystem_id;
  char bus_id[32];
} PciInfo;
_Static_assert(sizeof(PciInfo) == 68, "nvmlPciInfo_t");

API Return nvmlDeviceGetPciInfo_v3(Device *d, PciInfo *p) {
  DEVICE(PciInfo)
  memset(p, 0, sizeof *p);
  sscanf(g->bus_id, "%x:%x:%x", &p->domain, &p->bus, &p->device);
  snprintf(p->legacy_bus_id, sizeof p->legacy_bus_id, "%.12s", g->bus_id + 4);
  strcpy(p->bus_id, g->bus_id);
  p->device_id = 0x220410DE;
  return OK;
}

API Return nvmlDeviceGetDriverModel(Device *d, u32 *current, u32 *pending) {  // Windows only
  DEVICE(Display)
  (void)current, (void)pending;
  return NOT_SUPPORTED;
}

API Return nvmlDeviceGetDriverModel_v2(Device *d, u32 *current, u32 *pending) {
  return nvmlDeviceGetDriverModel(d, current, pending);
}

API Return nvmlDeviceGetMigMode(Device *d, u32 *current, u32 *pending) {
  DEVICE(MigMode)
  if (!g->mig) return NOT_SUPPORTED;
  *current = *pending = g->mig == 2;
  return OK;
}

API Return nvmlDeviceIsMigDeviceHandle(Device *d, u32 *v) {
  DEVICE(MigMode)
  *v = 0;
  return OK;
}

// ---- memory, load, temperature

typedef struct {
  u64 total, free, used;
} Memory;

typedef struct {
  u32 version;
  u64 total, reserved, free, used;
} MemoryV2;
_Static_assert(sizeof(MemoryV2) == 40, "nvmlMemory_v2_t");

API Return nvmlDeviceGetMemoryInfo(Device *d, Memory *m) {  // the first version counts what is reserved as used
  DEVICE(Memory)
  m->total = g->memory_total;
  m->used = g->memory_used + g->memory_reserved;
  m->free = m->total - m->used;
  return OK;
}

API Return nvmlDeviceGetMemoryInfo_v2(Device *d, MemoryV2 *m) {
  DEVICE(MemoryV2)
  if (m->version != (sizeof *m | 2u << 24)) return VERSION_MISMATCH;
  m->total = g->memory_total;
  m->reserved = g->memory_reserved;
  m->used = g->memory_used;
  m->free = m->total - m->used - m->reserved;
  return OK;
}

API Return nvmlDeviceGetBAR1MemoryInfo(Device *d, Memory *m) {
  DEVICE(Bar1)
  *m = (Memory){256u << 20, 248u << 20, 8u << 20};
  return OK;
}

API Return nvmlDeviceGetUtilizationRates(Device *d, u32 *rates) {
  DEVICE(Utilization)
  if (g->mig == 2) return NOT_SUPPORTED;
  rates[0] = g->util;
  rates[1] = g->memory_busy;
  return OK;
}

API Return nvmlDeviceGetEncoderUtilization(Device *d, u32 *percent, u32 *period_us) {
  DEVICE(Encoder)
  *percent = g->encoder;
  *period_us = 167000;
  return OK;
}

API Return nvmlDeviceGetDecoderUtilization(Device *d, u32 *percent, u32 *period_us) {
  DEVICE(Decoder)
  *percent = g->decoder;
  *period_us = 167000;
  return OK;
}

API Return nvmlDeviceGetTemperature(Device *d, u32 sensor, u32 *v) {
  DEVICE(Temperature)
  if (sensor) return INVALID_ARGUMENT;
  *v = g->temp;
  return OK;
}

typedef struct {
  u32 version, sensor;
  int celsius;
} TemperatureV;

API Return nvmlDeviceGetTemperatureV(Device *d, TemperatureV *t) {
  DEVICE(TemperatureV)
  if (t->version != (sizeof *t | 1u << 24)) return VERSION_MISMATCH;
  if (t->sensor) return INVALID_ARGUMENT;
  t->celsius = g->temp;
  return OK;
}

API Return nvmlDeviceGetTemperatureThreshold(Device *d, u32 kind, u32 *v) {
  DEVICE(Threshold)
  if (kind > 7) return INVALID_ARGUMENT;
  if (!g->threshold[kind]) return NOT_SUPPORTED;
  *v = g->threshold[kind];
  return OK;
}

typedef struct {
  u32 version;
  int celsius;
} Margin;
enum { SERVER_LIMIT_C = 87 };

API Return nvmlDeviceGetMarginTemperature(Device *d, Margin *m) {
  DEVICE(Margin)
  if (g->threshold[1]) return NOT_SUPPORTED;  // server cards have this in the place of thresholds
  m->celsius = SERVER_LIMIT_C - (int)g->temp;
  return OK;
}

// ---- power, energy, clocks, bus, fan, ECC

static u64 energy_mj(Gpu *g) {
  u64 now = now_ns();
  if (now <= g->energy_since_ns) return g->energy_mj;
  return g->energy_mj + (u64)((double)g->power_mw * (now - g->energy_since_ns) / 1e9);
}

ANSWER(PowerUsage, Power, u32, g->power_mw)
ANSWER(PowerManagementLimit, PowerLimit, u32, g->limit_mw)
ANSWER(EnforcedPowerLimit, EnforcedLimit, u32, g->limit_mw)
ANSWER(PowerManagementDefaultLimit, DefaultLimit, u32, g->default_mw)
ANSWER(TotalEnergyConsumption, Energy, u64, energy_mj(g))
ANSWER(PerformanceState, PState, u32, g->pstate)
ANSWER(CurrentClocksEventReasons, Reasons, u64, g->reasons)
ANSWER(CurrentClocksThrottleReasons, Reasons, u64, g->reasons)
ANSWER(SupportedClocksEventReasons, SupportedReasons, u64, 0x1ff)
ANSWER(CurrPcieLinkGeneration, PcieGeneration, u32, g->pcie_generation)
ANSWER(CurrPcieLinkWidth, PcieWidth, u32, g->pcie_width)
ANSWER(MaxPcieLinkGeneration, PcieMaxGeneration, u32, g->pcie_max_generation)
ANSWER(MaxPcieLinkWidth, PcieMaxWidth, u32, g->pcie_max_width)
ANSWER(PcieReplayCounter, PcieReplay, u32, g->pcie_replays)
ANSWER(NumFans, FanCount, u32, g->fan_count)

API Return nvmlDeviceGetPowerManagementLimitConstraints(Device *d, u32 *min, u32 *max) {
  DEVICE(LimitRange)
  *min = g->min_mw;
  *max = g->max_mw;
  return OK;
}

API Return nvmlDeviceSetPowerManagementLimit(Device *d, u32 mw) {
  DEVICE(SetPowerLimit)
  if (mw < g->min_mw || mw > g->max_mw) return INVALID_ARGUMENT;
  g->limit_mw = mw;
  return OK;
}

API Return nvmlDeviceGetClockInfo(Device *d, u32 kind, u32 *mhz) {
  DEVICE(Clock)
  if (kind > 3) return INVALID_ARGUMENT;
  *mhz = g->clock[kind];
  return OK;
}

API Return nvmlDeviceGetMaxClockInfo(Device *d, u32 kind, u32 *mhz) {
  DEVICE(MaxClock)
  if (kind > 3) return INVALID_ARGUMENT;
  *mhz = g->max_clock[kind];
  return OK;
}

API Return nvmlDeviceGetPcieThroughput(Device *d, u32 kind, u32 *kib_s) {
  DEVICE(PcieThroughput)
  if (kind > 1) return INVALID_ARGUMENT;
  *kib_s = 0;
  return OK;
}

API Return nvmlDeviceGetFanSpeed(Device *d, u32 *percent) {
  DEVICE(Fan)
  if (!g->fan_count) return NOT_SUPPORTED;
  *percent = g->fan;
  return OK;
}

API Return nvmlDeviceGetFanSpeed_v2(Device *d, u32 fan, u32 *percent) {
  DEVICE(Fan)
  if (!g->fan_count) return NOT_SUPPORTED;
  if (fan >= g->fan_count) return INVALID_ARGUMENT;
  *percent = g->fan;
  return OK;
}

typedef struct {
  u32 version, fan, rpm;
} FanRpm;

API Return nvmlDeviceGetFanSpeedRPM(Device *d, FanRpm *f) {
  DEVICE(FanRpm)
  if (!g->fan_count) return NOT_SUPPORTED;
  if (f->fan >= g->fan_count) return INVALID_ARGUMENT;
  f->rpm = g->fan_rpm;
  return OK;
}

API Return nvmlDeviceGetEccMode(Device *d, u32 *current, u32 *pending) {
  DEVICE(EccMode)
  if (!g->ecc) return NOT_SUPPORTED;
  *current = *pending = 1;
  return OK;
}

API Return nvmlDeviceGetTotalEccErrors(Device *d, u32 uncorrected, u32 counter, u64 *v) {
  DEVICE(Ecc)
  (void)counter;
  if (!g->ecc) return NOT_SUPPORTED;
  *v = uncorrected ? g->ecc_uncorrected : g->ecc_corrected;
  return OK;
}

API Return nvmlDeviceGetRemappedRows(Device *d, u32 *corrected, u32 *uncorrected, u32 *pending, u32 *failed) {
  DEVICE(RemappedRows)
  if (!g->ecc) return NOT_SUPPORTED;
  *corrected = *uncorrected = *pending = *failed = 0;
  return OK;
}

API Return nvmlDeviceGetRetiredPagesPendingStatus(Device *d, u32 *pending) {
  DEVICE(RetiredPages)
  (void)pending;
  return NOT_SUPPORTED;
}

// ---- processes

typedef struct {
  u32 pid;
  u64 memory;
  u32 gpu_instance, compute_instance;
} ProcessInfo;  // versions 2 and 3 have one layout
_Static_assert(sizeof(ProcessInfo) == 24, "nvmlProcessInfo_t");

static Return list_processes(int function, u32 kinds, Device *d, u32 *n, ProcessInfo *list) {
  Gpu *g;
  Return r = enter_device(function, d, &g);
  if (r) return r;
  u32 room = *n, used = 0;
  *n = 0;
  for (u32 i = 0; i < g->process_count; i++) *n += !!(g->process[i].kinds & kinds);
  if (!*n) return OK;
  if (room < *n || !list) return INSUFFICIENT_SIZE;
  for (u32 i = 0; i < g->process_count; i++)
    if (g->process[i].kinds & kinds)
      list[used++] = (ProcessInfo){g->process[i].pid, g->process[i].memory, ABSENT_ID, ABSENT_ID};
  return OK;
}

#define PROCESSES(name, function, kinds)                                                       \
  API Return nvmlDeviceGet##name##RunningProcesses_v3(Device *d, u32 *n, ProcessInfo *list) { \
    return list_processes(F_##function, kinds, d, n, list);                                    \
  }                                                                                            \
  API Return nvmlDeviceGet##name##RunningProcesses_v2(Device *d, u32 *n, ProcessInfo *list) { \
    return list_processes(F_##function, kinds, d, n, list);                                    \
  }

PROCESSES(Compute, ComputeProcesses, 1)
PROCESSES(Graphics, GraphicsProcesses, 2)
PROCESSES(MPSCompute, MpsProcesses, 4)

typedef struct {
  u32 pid;
  u64 at_us;
  u32 sm, memory, encoder, decoder;
} ProcessSample;

API Return nvmlDeviceGetProcessUtilization(Device *d, ProcessSample *list, u32 *n, u64 since_us) {
  DEVICE(ProcessUtilization)
  (void)since_us;
  u32 room = *n;
  *n = g->process_count;
  if (!*n) return NOT_FOUND;
  if (!list || room < *n) return INSUFFICIENT_SIZE;
  for (u32 i = 0; i < *n; i++)
    list[i] = (ProcessSample){g->process[i].pid, now_ns() / 1000, g->process[i].sm, g->process[i].memory_busy, 0, 0};
  return OK;
}

// ---- the batch of fields

typedef union {
  double d;
  u32 ui;
  u64 ull;
} Value;

typedef struct {
  u32 id, scope;
  long long at_us, latency_us;
  u32 type;
  Return ret;
  Value value;
} FieldValue;
_Static_assert(sizeof(FieldValue) == 40, "nvmlFieldValue_t");

enum { DOUBLE = 0, UNSIGNED_INT = 1, UNSIGNED_LONG_LONG = 3 };

static void answer_unsigned(FieldValue *f, u32 v) {
  f->type = UNSIGNED_INT;
  f->value.ui = v;
}

static u64 throttled_ns(Gpu *g, u32 reason) {
  u64 since = g->throttled_since_ns[reason];
  return g->throttled_ns[reason] + (since ? now_ns() - since : 0);
}

static void answer_field(Gpu *g, FieldValue *f) {
  switch (f->id) {
    case 83: case 191: f->value.ull = energy_mj(g); break;
    case 185: case 186: answer_unsigned(f, g->power_mw); break;
    case 187: answer_unsigned(f, g->min_mw); break;
    case 188: answer_unsigned(f, g->max_mw); break;
    case 189: answer_unsigned(f, g->default_mw); break;
    case 190: case 192: answer_unsigned(f, g->limit_mw); break;
    case 230: answer_unsigned(f, g->recovery); break;
    case 308: f->type = DOUBLE; f->value.d = g->temp; break;
    case 4:
      if (g->ecc) f->value.ull = g->ecc_uncorrected;
      else f->ret = NOT_SUPPORTED;
      break;
    case 94: answer_unsigned(f, g->pcie_replays); break;
    case 74: f->value.ull = throttled_ns(g, 0); break;
    case 269: case 270: case 271: f->value.ull = throttled_ns(g, f->id - 268); break;
    case 76: break;
    case 82:
      if (g->ecc) answer_unsigned(f, g->temp + 8);
      else f->ret = NOT_SUPPORTED;
      break;
    default: f->ret = NOT_SUPPORTED;
  }
}

API Return nvmlDeviceGetFieldValues(Device *d, int n, FieldValue *fields) {
  DEVICE(FieldValues)
  for (int i = 0; i < n; i++) {
    FieldValue *f = &fields[i];
    *f = (FieldValue){.id = f->id, .scope = f->scope, .at_us = now_ns() / 1000, .type = UNSIGNED_LONG_LONG};
    Field *scripted = f->id < MAX_FIELDS ? &g->field[f->id] : NULL;
    if (scripted && scripted->set) {
      f->ret = scripted->ret;
      f->type = scripted->type;
      f->value.ull = scripted->value;
    } else {
      answer_field(g, f);
    }
  }
  return OK;
}

// ---- events

typedef struct {
  u64 seen;
  u64 mask[MAX_GPUS];
  u32 generation;
} EventSet;

typedef struct {
  Device *device;
  u64 type, data;
  u32 gpu_instance, compute_instance;
} EventData;
_Static_assert(sizeof(EventData) == 32, "nvmlEventData_t");

ANSWER(SupportedEventTypes, EventTypes, u64, g->ecc ? 0x1f : 0x1c)

API Return nvmlEventSetCreate(EventSet **set) {
  SYSTEM(EventCreate)
  *set = calloc(1, sizeof **set);
  (*set)->seen = state->event_seq;
  (*set)->generation = state->generation;
  return OK;
}

API Return nvmlDeviceRegisterEvents(Device *d, u64 types, EventSet *set) {
  DEVICE(EventRegister)
  (void)g;
  set->mask[d->index] |= types;
  return OK;
}

static int next_event(EventSet *set, EventData *data) {
  u64 head = __atomic_load_n(&state->event_seq, __ATOMIC_ACQUIRE);
  if (head > set->seen + MAX_EVENTS) set->seen = head - MAX_EVENTS;
  while (set->seen < head) {
    Event *e = &state->event[set->seen++ % MAX_EVENTS];
    if (e->gpu >= MAX_GPUS || !(set->mask[e->gpu] & e->type)) continue;
    *data = (EventData){&devices[e->gpu], e->type, e->data, ABSENT_ID, ABSENT_ID};
    return 1;
  }
  return 0;
}

API Return nvmlEventSetWait_v2(EventSet *set, EventData *data, u32 timeout_ms) {
  SYSTEM(EventWait)
  u64 end = now_ns() + timeout_ms * 1000000ull;
  for (;;) {
    if (set->generation != state->generation) return UNINITIALIZED;
    if (next_event(set, data)) return OK;
    if (state->wait_ret) return state->wait_ret;
    for (u32 i = 0; i < state->gpu_count; i++)  // as after a real XID 79: every wait fails at once
      if (set->mask[i] && state->gpu[i].lost) return state->gpu[i].lost;
    if (now_ns() >= end) return TIMEOUT;
    nap_us(20000);  // a driver sleeps until something happens
  }
}

API Return nvmlEventSetFree(EventSet *set) {
  SYSTEM(EventFree)
  free(set);
  return OK;
}
