/* The plain C loop that our llama.cpp engine is measured against: load, prefill, decode, and nothing else.
 *
 *   llama_loop MODEL THREADS CONTEXT [no-amx]
 *
 * reads lines "PROMPT STEPS" and answers each with one line: milliseconds of a prefill of PROMPT tokens, then of each of
 * STEPS single-token decodes, the logits fetched after every call. Everything else stays at llama.cpp's defaults.
 * "no-amx" (Linux on x86-64) has the kernel refuse the AMX tiles, so that the same build runs as on a CPU without them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#if defined(__linux__) && defined(__x86_64__)
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif

#include "llama.h"

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double) t.tv_sec + 1e-6 * (double) t.tv_nsec;
}

static void silent(enum ggml_log_level level, const char * text, void * user) {
    (void) user;
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

/* Let arch_prctl(ARCH_REQ_XCOMP_PERM), with which ggml asks for the tiles, fail with EPERM. 0 on success. */
static int refuse_amx(void) {
#if defined(__linux__) && defined(__x86_64__)
    const unsigned arch_req_xcomp_perm = 0x1023;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, arch_req_xcomp_perm, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        return -1;
    }
    return syscall(SYS_arch_prctl, arch_req_xcomp_perm, 18) == -1 && errno == EPERM ? 0 : -1;
#else
    return -1;
#endif
}

/* One timed llama_decode of `count` tokens; the logits are fetched, as a sampler would. */
static double decode_ms(struct llama_context * context, llama_token * tokens, int count) {
    double start = now_ms();
    if (llama_decode(context, llama_batch_get_one(tokens, count)) != 0 || llama_get_logits(context) == NULL) {
        fprintf(stderr, "llama_decode failed\n");
        exit(1);
    }
    return now_ms() - start;
}

int main(int argc, char ** argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: llama_loop MODEL THREADS CONTEXT [no-amx]\n");
        return 2;
    }
    llama_log_set(silent, NULL);
    if (argc > 4 && strcmp(argv[4], "no-amx") == 0 && refuse_amx() != 0) {
        fprintf(stderr, "AMX cannot be refused here\n");
        return 1;
    }
    llama_backend_init();
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    struct llama_context_params context_params = llama_context_default_params();
    context_params.n_threads = context_params.n_threads_batch = atoi(argv[2]);
    context_params.n_ctx = (uint32_t) atoi(argv[3]);
    struct llama_context * context = model ? llama_init_from_model(model, context_params) : NULL;
    if (context == NULL) {
        return 1;
    }
    llama_token * tokens = malloc(context_params.n_ctx * sizeof *tokens);
    int prompt, steps;
    printf("ready\n");
    fflush(stdout);
    while (scanf("%d %d", &prompt, &steps) == 2) {
        llama_memory_seq_rm(llama_get_memory(context), 0, 0, -1);
        for (int i = 0; i < prompt; i++) {
            tokens[i] = i;
        }
        printf("%.4f", decode_ms(context, tokens, prompt));
        for (int i = 0; i < steps; i++) {
            printf(" %.4f", decode_ms(context, tokens + 5, 1));
        }
        printf("\n");
        fflush(stdout);
    }
    free(tokens);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
