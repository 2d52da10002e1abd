/* vimg completion: what shells need to complete vimg's command lines. */
#include "vimg.h"

#include <stdio.h>
#include <string.h>

static const struct option_def options[] = {
    OPTIONS_HELP_ROW,
    { 0 }
};

static void print_options(const struct option_def *defs)
{
    for (; defs->kind != OPTION_END; defs++) {
        if (defs->letter)
            printf("-%c ", defs->letter);
        printf("--%s%s ", defs->name, defs->argument ? "=" : "");
    }
}

/* Words that follow an option, where there are but a few. */
static const char *words_of(const char *argument)
{
    static const struct { const char *argument, *words; } known[] = {
        { "HOW", "human json" },
        { "CACHE", "none writeback writethrough directsync unsafe" },
        { "WHAT", "leaks all" },
        { "AIO", "threads native io_uring" },
    };

    for (size_t i = 0; argument && i < sizeof known / sizeof known[0]; i++)
        if (!strcmp(known[i].argument, argument))
            return known[i].words;
    return NULL;
}

static void print_words(const struct option_def *defs)
{
    for (; defs->kind != OPTION_END; defs++) {
        bool format = defs->argument && !strcmp(defs->argument, "FMT");
        const char *words = words_of(defs->argument);

        if (!format && !words)
            continue;
        fputs("        ", stdout);
        if (defs->letter)
            printf("-%c|", defs->letter);
        printf("--%s) words=\"", defs->name);
        if (words)
            fputs(words, stdout);
        for (size_t i = 0; format && img_format(i); i++)
            printf("%s%s", i ? " " : "", img_format(i)->name);
        puts("\" ;;");
    }
}

static int bash(void)
{
    puts("# bash completion of vimg, made by: vimg completion bash\n"
         "_vimg() {\n"
         "    local cur=${COMP_WORDS[COMP_CWORD]} words= options= commands\n"
         "    local prev=${COMP_WORDS[COMP_CWORD-1]}\n"
         "    COMPREPLY=()\n"
         "    if [[ $cur == = ]]; then cur=\n"
         "    elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}\n"
         "    fi");
    fputs("    commands=\"", stdout);
    for (size_t i = 0; commands[i]; i++)
        printf("%s%s", i ? " " : "", commands[i]->name);
    puts("\"\n"
         "    if ((COMP_CWORD == 1)); then\n"
         "        COMPREPLY=($(compgen -W \"$commands --help --version\" "
         "-- \"$cur\"))\n"
         "        return\n"
         "    fi\n"
         "    case ${COMP_WORDS[1]} in");
    for (size_t i = 0; commands[i]; i++) {
        printf("    %s)\n        options=\"", commands[i]->name);
        print_options(commands[i]->options);
        puts("\"\n        case $prev in");
        print_words(commands[i]->options);
        puts("        esac ;;");
    }
    puts("    esac\n"
         "    if [[ $words ]]; then\n"
         "        COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
         "    elif [[ $cur == -* ]]; then\n"
         "        COMPREPLY=($(compgen -W \"$options\" -- \"$cur\"))\n"
         "        [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace\n"
         "    else\n"
         "        COMPREPLY=($(compgen -f -- \"$cur\"))\n"
         "        compopt -o filenames\n"
         "    fi\n"
         "}\n"
         "complete -F _vimg vimg");
    return 0;
}

static int run(int argc, char **argv)
{
    if (argc != 1)
        return usage_error("Expecting the name of a shell");
    if (!strcmp(argv[0], "bash"))
        return bash();
    complain("There is no completion for '%s', only for bash", argv[0]);
    return 1;
}

const struct command command_completion = {
    "completion", "bash", "Print a script that completes vimg's command lines",
    options, run, false
};
