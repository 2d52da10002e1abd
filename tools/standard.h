/* Standard input, output and error. */
#ifndef TOOLS_STANDARD_H
#define TOOLS_STANDARD_H
/* To be called first: where the caller closed one of the three, its number is
 * taken, or the next file to be opened would have it, and what is printed
 * would be written into an image.  Using it stays the error that it was
 * (EBADF).  -1: that cannot be done. */
int standard_take(void);
#endif
