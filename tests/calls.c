/* Loaded into every process of a test: writes down whom it wants to reach, and lets nobody. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *call, const char *whom) {
  const char *path = getenv("EDGEVIT_TEST_CALLS");
  char line[512];
  int length = snprintf(line, sizeof line, "%s %s\n", call, whom ? whom : "?");
  int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
  if (file < 0 || write(file, line, (size_t)length) != length) abort();
  close(file);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
  (void)service, (void)hints, (void)result;
  note("getaddrinfo", node);
  return EAI_FAIL;
}

struct hostent *gethostbyname(const char *name) {
  note("gethostbyname", name);
  return NULL;
}

static int refused(const char *call, const struct sockaddr *address) {
  char family[32];
  snprintf(family, sizeof family, "family %d", address ? address->sa_family : -1);
  note(call, family);
  errno = ENETUNREACH;
  return -1;
}

int connect(int socket, const struct sockaddr *address, socklen_t length) {
  (void)socket, (void)length;
  return refused("connect", address);
}

ssize_t sendto(int socket, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length) {
  (void)socket, (void)data, (void)size, (void)flags, (void)length;
  return refused("sendto", to);
}
