/* Progress and interruption of long work, see progress.h. */
#include "progress.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static volatile sig_atomic_t caught;    /* signal that asked us to stop */
static volatile sig_atomic_t asked;     /* SIGUSR1 wants one line */

static struct {
    bool show;
    double percent, shown;
    struct img_job job;
    struct sigaction old[4];
} now;

static const int signals[] = { SIGINT, SIGTERM, SIGHUP, SIGUSR1 };

static void on_signal(int number)
{
    if (number == SIGUSR1)
        asked = 1;
    else
        caught = number;
}

static void draw(double percent)
{
    now.shown = percent;
    printf("    (%3.2f/100%%)\r", percent);
    fflush(stdout);
}

static int step(void *opaque, uint64_t done, uint64_t total)
{
    now.percent = total ? 100.0 * (double)done / (double)total : 0;
    if (now.show && now.percent >= now.shown + 1)
        draw(now.percent);
    if (asked) {
        asked = 0;
        if (!now.show)
            fprintf(stderr, "    (%3.2f/100%%)\n", now.percent);
    }
    return caught != 0;
}

struct img_job *progress_begin(bool show)
{
    struct sigaction action = { .sa_handler = on_signal };

    now.show = show;
    now.percent = now.shown = 0;
    now.job = (struct img_job)IMG_JOB;
    now.job.progress = step;
    for (int i = 0; i < 4; i++) {
        /* A second Ctrl-C ends the program at once. */
        action.sa_flags = signals[i] == SIGUSR1 ? SA_RESTART
                                                : SA_RESTART | SA_RESETHAND;
        sigaction(signals[i], NULL, &now.old[i]);
        if (now.old[i].sa_handler != SIG_IGN || signals[i] == SIGUSR1)
            sigaction(signals[i], &action, NULL);
    }
    if (show)
        draw(0);
    return &now.job;
}

void progress_end(bool ok)
{
    for (int i = 0; i < 4; i++)
        sigaction(signals[i], &now.old[i], NULL);
    if (!now.show)
        return;
    if (ok)
        draw(100);
    putchar('\n');
    fflush(stdout);
}

bool progress_interrupted(void)
{
    return caught != 0;
}

int progress_exit(int code)
{
    if (caught) {
        fflush(stdout);
        signal(caught, SIG_DFL);
        raise(caught);
    }
    return code;
}
