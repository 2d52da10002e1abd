/* Servers that the command line asks for: '[' nbdkit curl https://... ']'.
 *
 * The words between the brackets are a program that is started with a
 * listening socket (systemd's socket activation, as libnbd's tools do it);
 * the URI of that socket takes their place.  The server ends with the last
 * process that could use it, however that ends. */
#ifndef NBD_SPAWN_H
#define NBD_SPAWN_H
struct img_error;

/* Starts the servers and shortens the list of arguments.  Only before there
 * are threads.  *argv may become a new array, which lives until
 * nbd_spawn_end. */
int nbd_spawn_servers(int *argc, char ***argv, struct img_error *err);
/* What they say is no longer for whoever started us: we are in the
 * background now. */
void nbd_spawn_quiet(void);
/* Another process goes on with them. */
void nbd_spawn_forget(void);
/* Lets go of them and waits for their end.  No argument is used any more. */
void nbd_spawn_end(void);
#endif
