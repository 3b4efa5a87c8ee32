/* Preloaded into a process, it counts what that does to files below a folder, and lets it fail from one of these
operations on. Counted are the calls of the C library that make, change, lock, sync, close, rename and remove files; a
write counts twice, since it may end half way. Reading changes nothing and is not counted. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES 1024
#define LOG_BYTES (1 << 20)

/* END: nothing has an effect any more, as if the process had been killed. FULL: nothing that needs room on the disk. */
enum { NONE, END, FULL };

static char folder[4096];
static char names[FILES][256]; /* of the open files below the folder; empty for all others */
static char events[LOG_BYTES];
static size_t logged;
static long count, target;
static int fault;

/* Forgets everything. From operation `at` of this folder, which is the working directory, on there is the fault. */
void faults_arm(const char* where, long at, int what) {
  memset(names, 0, sizeof names);
  snprintf(folder, sizeof folder, "%s", where);
  logged = 0;
  events[0] = 0;
  count = 0;
  target = at;
  fault = what;
}

/* One line for each operation: its name, and the names of its files. */
const char* faults_log(void) { return events; }

static const char* find_inside(const char* path) {
  size_t length = strlen(folder);
  if (!length) return NULL;
  if (path[0] != '/') return path;
  return !strncmp(path, folder, length) && path[length] == '/' ? path + length + 1 : NULL;
}

static const char* find_open(int file) { return file >= 0 && file < FILES && names[file][0] ? names[file] : NULL; }

/* Counts an operation. Whether it must fail. */
static int fails(const char* what, const char* name, const char* other, int needs_room) {
  count++;
  logged += (size_t)snprintf(events + logged, LOG_BYTES - logged, "%s\t%s\t%s\n", what, name, other);
  if (logged >= LOG_BYTES) abort();
  if (fault == NONE || count < target || (fault == FULL && !needs_room)) return 0;
  errno = fault == FULL ? ENOSPC : EIO;
  return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int open64(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  mode_t mode = va_arg(more, mode_t);
  va_end(more);
  const char* name = find_inside(path);
  int changes = (flags & (O_WRONLY | O_RDWR)) != 0, is_folder = (flags & O_DIRECTORY) == O_DIRECTORY;
  if (!name || !(changes || is_folder)) return REAL(open64)(path, flags, mode);
  if (changes && fails("open", name, "", (flags & O_CREAT) && access(path, F_OK))) return -1;
  int file = REAL(open64)(path, flags, mode);
  if (file >= 0 && file < FILES) snprintf(names[file], sizeof names[file], "%s", name);
  return file;
}

int open(const char* path, int flags, ...) __attribute__((alias("open64")));

ssize_t write(int file, const void* data, size_t size) {
  const char* name = find_open(file);
  if (!name) return REAL(write)(file, data, size);
  if (fails("write", name, "", 1)) return -1;
  ssize_t done = REAL(write)(file, data, fault != NONE && count + 1 == target ? size / 2 : size);
  fails("written", name, "", 0);
  return done;
}

ssize_t pwrite64(int file, const void* data, size_t size, off64_t at) {
  const char* name = find_open(file);
  return name && fails("pwrite", name, "", 0) ? -1 : REAL(pwrite64)(file, data, size, at);
}

int ftruncate64(int file, off64_t size) {
  const char* name = find_open(file);
  return name && fails("truncate", name, "", 0) ? -1 : REAL(ftruncate64)(file, size);
}

int fsync(int file) {
  const char* name = find_open(file);
  return name && fails("fsync", name, "", 1) ? -1 : REAL(fsync)(file);
}

int flock(int file, int how) {
  const char* name = find_open(file);
  return name && fails("lock", name, "", 0) ? -1 : REAL(flock)(file, how);
}

int close(int file) {
  const char* name = find_open(file);
  if (name) {
    fails("close", name, "", 0); /* it is closed all the same */
    names[file][0] = 0;
  }
  return REAL(close)(file);
}

int rename(const char* from, const char* to) {
  const char *name = find_inside(from), *other = find_inside(to);
  return name && other && fails("rename", name, other, 1) ? -1 : REAL(rename)(from, to);
}

int unlink(const char* path) {
  const char* name = find_inside(path);
  return name && fails("remove", name, "", 0) ? -1 : REAL(unlink)(path);
}

int unlinkat(int at, const char* path, int flags) {
  return folder[0] && fails("remove", path, "", 0) ? -1 : REAL(unlinkat)(at, path, flags);
}

int rmdir(const char* path) {
  const char* name = find_inside(path);
  return name && fails("remove", name, "", 0) ? -1 : REAL(rmdir)(path);
}

int mkdir(const char* path, mode_t mode) {
  const char* name = find_inside(path);
  return name && fails("mkdir", name, "", 1) ? -1 : REAL(mkdir)(path, mode);
}
