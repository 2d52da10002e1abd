/* Whom to admit: the objects authz-simple, authz-list and authz-list-file. */
#ifndef NBD_AUTHZ_H
#define NBD_AUTHZ_H
#include "objects.h"

struct nbd_authz;

/* The object of that id; must stay while the policy is used. */
int nbd_authz_new(const struct nbd_objects *, const char *id,
                  struct nbd_authz **, struct img_error *);
void nbd_authz_free(struct nbd_authz *);        /* NULL is fine */
/* Any thread.  A list in a file is read anew unless refresh=off; one that
 * cannot be read admits nobody. */
bool nbd_authz_admits(const struct nbd_authz *, const char *identity);
#endif
