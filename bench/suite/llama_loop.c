/* The plain C loop that our llama.cpp engine is measured against: load, prefill, decode, and nothing else.
 *
 *   llama_loop MODEL THREADS CONTEXT [no-amx]
 *
 * reads lines "STEPS PIECE..." and answers each with one line: milliseconds of the prefill, then of each of STEPS
 * single-token decodes, the logits fetched after every call. A piece is one llama_decode of the prefill: "t14" is 14
 * token ids, "e256" 256 embeddings. Everything else stays at llama.cpp's defaults.
 * "no-amx" (Linux on x86-64) has the kernel refuse the AMX tiles, so that the same build runs as on a CPU without them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
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

/* What is fed, the same again and again. */
struct inputs {
    llama_token * tokens;
    float * embeddings;
    int8_t * no_logits;
};

static void * checked(void * memory) {
    if (memory == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return memory;
}

/* `count` ids in order, embeddings of `width` between -1 and 1, and no logits wanted. */
static struct inputs make_inputs(size_t count, size_t width) {
    struct inputs made = {
        checked(malloc(count * sizeof(llama_token))),
        checked(malloc(count * width * sizeof(float))),
        checked(calloc(count, 1)),
    };
    uint32_t state = 1;
    for (size_t i = 0; i < count; i++) {
        made.tokens[i] = (llama_token) i;
    }
    for (size_t i = 0; i < count * width; i++) {
        state = state * 1664525u + 1013904223u;
        made.embeddings[i] = (float) (state >> 8) / 8388608.0f - 1.0f;
    }
    return made;
}

/* One timed llama_decode of `count` positions; the logits of the last are fetched if it is the prompt's last, as a
 * sampler would. */
static double decode_ms(struct llama_context * context, const struct inputs * in, char kind, int count, int is_last) {
    double start = now_ms();
    struct llama_batch batch = llama_batch_get_one(kind == 't' ? in->tokens : NULL, count);
    batch.embd = kind == 'e' ? in->embeddings : NULL;
    batch.logits = is_last ? NULL : in->no_logits;
    if (llama_decode(context, batch) != 0 || (is_last && llama_get_logits(context) == NULL)) {
        fprintf(stderr, "llama_decode failed\n");
        exit(1);
    }
    return now_ms() - start;
}

/* Milliseconds of the prefill that `pieces` describes. */
static double prefill_ms(struct llama_context * context, const struct inputs * in, char * pieces) {
    double total = 0;
    for (char * piece = strtok(pieces, " \n"), * next; piece != NULL; piece = next) {
        next = strtok(NULL, " \n");
        int count = atoi(piece + 1);
        if ((piece[0] != 't' && piece[0] != 'e') || count < 1 || count > (int) llama_n_batch(context)) {
            fprintf(stderr, "no such piece: %s\n", piece);
            exit(2);
        }
        total += decode_ms(context, in, piece[0], count, next == NULL);
    }
    return total;
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
    struct inputs in = make_inputs(llama_n_batch(context), (size_t) llama_model_n_embd_inp(model));
    char line[256];
    printf("ready\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        char * pieces;
        long steps = strtol(line, &pieces, 10);
        llama_memory_seq_rm(llama_get_memory(context), 0, 0, -1);
        printf("%.4f", prefill_ms(context, &in, pieces));
        for (long i = 0; i < steps; i++) {
            printf(" %.4f", decode_ms(context, &in, 't', 1, 1));
        }
        printf("\n");
        fflush(stdout);
    }
    free(in.tokens);
    free(in.embeddings);
    free(in.no_logits);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
