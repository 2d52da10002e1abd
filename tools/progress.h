/* Progress and interruption of long work.
 *
 * progress_begin gives the job for one library call.  With `show` a bar is
 * drawn; without it SIGUSR1 prints one line.  SIGINT, SIGTERM and SIGHUP make
 * the library stop cleanly.  One at a time. */
#ifndef PROGRESS_H
#define PROGRESS_H

#include <stdbool.h>
#include <libimg.h>

struct img_job *progress_begin(bool show);
/* ok: the work is complete and the bar shows 100 %. */
void progress_end(bool ok);
/* After an interrupted job and all cleaning up: ends the process by the
 * signal that interrupted it, as shells expect.  Else returns code. */
int progress_exit(int code);
bool progress_interrupted(void);

#endif
