/* Files beside an image that come and go with it. */
#ifndef IMG_CORE_BESIDE_H
#define IMG_CORE_BESIDE_H
struct img_chain;
struct img_layer;

/* Sets the hooks of format.h that do that. */
void img_beside_hooks(struct img_layer *layer);
/* Closes what the hooks have kept. */
void img_beside_free(struct img_chain *chain);
#endif
