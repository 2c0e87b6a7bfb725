/* kvant: block quantization for inference code, in C.
 *
 * The model. A tensor is rows of `cols` elements. A format packs each row into blocks: `block`
 * elements become `block_bytes` bytes, so a packed row has cols / block * block_bytes bytes, and a
 * row must be a multiple of the block. Encoding gives the bytes llama.cpp writes, decoding its
 * floats; both depend on the inputs only, not on the processor or the number of threads.
 *
 * Every function that can fail returns 0 or a negative code; kvant_error_text explains the last
 * failure of the calling thread. Floats must be aligned to their size (KVANT_BAD_ALIGNMENT);
 * packed rows may lie anywhere. Nothing prints, aborts or keeps pointers to your memory. All
 * functions may be called from any thread.
 */
#ifndef KVANT_H
#define KVANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cffi:begin */

/* Codes. */
enum {
  KVANT_OK = 0,
  KVANT_BAD_SHAPE = -1,
  KVANT_BAD_FORMAT = -2,
  KVANT_BAD_ALIGNMENT = -3,
  KVANT_NO_MEMORY = -4,
  KVANT_IO = -5,
  KVANT_UNSUPPORTED_ISA = -6,
  KVANT_BUSY = -7,
  KVANT_FULL = -8
};

/* Element types of float arrays. */
enum { KVANT_F32 = 0, KVANT_F16 = 1, KVANT_BF16 = 2 };

/* "major.minor.patch". */
const char* kvant_version(void);

/* What went wrong in this thread's last failing call; never null. */
const char* kvant_error_text(void);

/* ---- formats ---- */

typedef struct {
  const char* name;
  int32_t ggml_type;       /* id in GGUF files */
  int32_t block;           /* elements */
  int32_t block_bytes;
  int32_t group;           /* elements that share a scale */
  bool can_encode;
  bool uses_importance;    /* whether importance weights change the bytes */
} kvant_format;

/* Formats are numbered 0 .. count - 1. */
int32_t kvant_format_count(void);

/* Fills `info`; KVANT_BAD_FORMAT when there is no such format. */
int32_t kvant_format_info(int32_t format, kvant_format* info);

/* Number of the format of that name, or KVANT_BAD_FORMAT. */
int32_t kvant_format_find(const char* name);

/* ---- instruction sets ---- */

int32_t kvant_isa_count(void);

/* Names are listed best first; null when index is out of range. */
const char* kvant_isa_name(int32_t index);
bool kvant_isa_supported(int32_t index);

/* Name of the ISA in use. The first use of any ISA reads KVANT_ISA; null when that names one that
 * is unknown or that this machine lacks. */
const char* kvant_isa_current(void);

/* Uses another ISA from now on; KVANT_UNSUPPORTED_ISA leaves the choice as it was. */
int32_t kvant_isa_use(const char* name);

/* ---- threads and memory ---- */

/* Threads of one call; default: physical cores this process may use, or KVANT_THREADS. */
int32_t kvant_threads(void);

/* n < 1 sets the default again. */
void kvant_set_threads(int32_t n);

/* Zeroed memory, aligned to 64 bytes; from 2 MiB on aligned to 2 MiB, in huge pages where the system
 * gives them. Null when there is none. Free with the same size. */
void* kvant_buffer_alloc(size_t bytes);
void kvant_buffer_free(void* buffer, size_t bytes);

/* ---- coding ---- */

/* Encodes rows x cols floats.
 *   x, type, row_stride   the floats; row_stride counts elements from row to row
 *   importance            weights [vectors, cols], each for rows_per_vector rows in turn; or null
 *   out, out_bytes        rows * cols / block * block_bytes bytes
 *   threads               at most; 0 for the set number
 *   nonfinite             receives row * cols + col of the first NaN or infinity, else -1; may be null
 * KVANT_BAD_SHAPE for a NaN or an infinity, a row that is no multiple of the block, or a wrong size;
 * `out` is unspecified after a NaN or an infinity and untouched after other failures. */
int32_t kvant_encode(int32_t format, const void* x, int32_t type, int64_t rows, int64_t cols,
                     int64_t row_stride, const float* importance, int64_t rows_per_vector, uint8_t* out,
                     int64_t out_bytes, int32_t threads, int64_t* nonfinite);

/* Decodes rows x cols elements to `type`.
 *   data, row_stride      packed rows, row_stride bytes from row to row, data_rows of them
 *   index                 row i of the result is packed row index[i]; null for 0 .. rows - 1
 *   out                   rows x cols floats without gaps */
int32_t kvant_decode(int32_t format, const uint8_t* data, int64_t row_stride, int64_t data_rows,
                     const int64_t* index, int64_t rows, int64_t cols, int32_t type, void* out,
                     int32_t threads);

/* Sums over one row of originals x and decoded y, e = x - y, w the importance or 1. */
typedef struct {
  double ee, xx, yy, xy, wee, wxx, max;
} kvant_row_error;

/* Measures packed rows against the floats they were made from; fills one struct per row. */
int32_t kvant_row_errors(int32_t format, const uint8_t* data, int64_t data_row_stride, const void* x,
                         int32_t type, int64_t rows, int64_t cols, int64_t row_stride,
                         const float* importance, int64_t rows_per_vector, kvant_row_error* out,
                         int32_t threads);

/* Looks for blocks whose scale is not a finite number of the format (for mxfp4 the exponent 255, for
 * nvfp4 scale bytes from 0x7f on).
 * block receives the index of the first, else -1. */
int32_t kvant_validate(int32_t format, const uint8_t* data, int64_t row_stride, int64_t rows, int64_t cols,
                       int32_t threads, int64_t* block);

/* ---- matrix products ---- */

/* Bytes of a packed matrix: tiles of sixteen rows, each up to a multiple of 64 bytes; or a negative code. */
int64_t kvant_packed_bytes(int32_t format, int64_t rows, int64_t cols);

/* Rows without gaps as a file holds them, into `out`, aligned to 64 bytes, of kvant_packed_bytes. */
int32_t kvant_pack(int32_t format, const uint8_t* data, int64_t rows, int64_t cols, uint8_t* out,
                   int64_t out_bytes, int32_t threads);

/* The inverse: the bytes of the file. */
int32_t kvant_unpack(int32_t format, const uint8_t* packed, int64_t rows, int64_t cols, uint8_t* out,
                     int64_t out_bytes, int32_t threads);

/* How activations meet quantized weights: rounded to eight bits in blocks of 32, or as they are.
 * Float weights always take them as they are. */
enum { KVANT_ACTIVATION_Q8 = 0, KVANT_ACTIVATION_F32 = 1 };

/* One of several products of the same activations: y[i][j] = sum over k of x[i][k] * weights[j][k]. */
typedef struct {
  const uint8_t* weights;  /* rows without gaps as in a file, or packed (then aligned to 64 bytes) */
  int64_t weight_bytes;
  int32_t format;
  int32_t packed;          /* 0 or 1 */
  int64_t rows;            /* of the weights */
  float* y;                /* x_rows rows of `rows` floats, y_stride floats apart */
  int64_t y_stride;
} kvant_product;

/* Multiplies x, x_rows x cols, by each of at most 16 weight matrices. Results depend on x and the
 * weights only. A row of x with a NaN or an infinity gives a row of NaN. y must not overlap x. */
int32_t kvant_matmul(const void* x, int32_t type, int64_t x_rows, int64_t cols, int64_t x_stride,
                     const kvant_product* products, int32_t count, int32_t activation, int32_t threads);

/* Matrices of one shape and format, as a layer with experts has them; a lone matrix is one of one. */
typedef struct {
  const uint8_t* weights;  /* each as in kvant_product */
  int64_t weight_bytes;    /* of all that may be read */
  int64_t stride;          /* bytes from matrix to matrix; when packed, a multiple of 64 */
  int32_t format;
  int32_t packed;          /* 0 or 1 */
  int64_t count;
  int64_t rows, cols;      /* of each */
} kvant_experts;

/* Multiplies each token's row of x by the experts chosen for it: y[t][s] = x[t] * experts[ids[t][s]].
 *   x                     tokens rows of experts->cols floats, or, when x_per_slot is 1, one for each
 *                         slot, tokens * top; x_stride elements apart
 *   ids                   [tokens, top], from 0 to count - 1; the same may stand there repeatedly
 *   y                     tokens * top rows, y_stride floats apart; overlaps nothing that is read
 *   act                   KVANT_ACTIVATION_Q8 or KVANT_ACTIVATION_F32
 *   threads               at most; 0 for the set number
 * The bits are those of kvant_matmul of each row with its expert. KVANT_BAD_SHAPE for an id that names no
 * expert, sizes that do not fit, overlaps, and more than 2^31 - 1 rows; `y` is untouched then. */
int32_t kvant_matmul_experts(const void* x, int32_t type, int64_t tokens, int64_t x_stride, int32_t x_per_slot,
                             const kvant_experts* experts, const int64_t* ids, int64_t top, float* y,
                             int64_t y_stride, int32_t act, int32_t threads);

/* Gated feed-forward network: y = down(activation(gate(x)) * up(x)), for rows of x.
 *   gate, up              matrices [hidden, cols], count 1; formats may differ
 *   down                  matrix [out, hidden], count 1
 *   activation            KVANT_SILU, ...
 *   y                     as many rows as x, of `out` floats, y_stride apart; overlaps nothing that is read
 *   act, threads          as above
 * The bits are those of kvant_matmul, kvant_activation_mul and kvant_matmul. Failures as above. */
int32_t kvant_ffn(const void* x, int32_t type, int64_t rows, int64_t x_stride, const kvant_experts* gate,
                  const kvant_experts* up, const kvant_experts* down, int32_t activation, float* y,
                  int64_t y_stride, int32_t act, int32_t threads);

/* The same with experts: from +0 on, y[t] = fma(weights[t][s], network ids[t][s] of x[t], y[t]) for each slot s in order.
 *   gate, up, down        of the same count
 *   ids, weights          [tokens, top] */
int32_t kvant_moe_ffn(const void* x, int32_t type, int64_t tokens, int64_t x_stride, const kvant_experts* gate,
                      const kvant_experts* up, const kvant_experts* down, const int64_t* ids,
                      const float* weights, int64_t top, int32_t activation, float* y, int64_t y_stride,
                      int32_t act, int32_t threads);

/* ---- operations around products ----
 *
 * Rows are `cols` floats, strides count elements from row to row. `out` may be an input itself, with the same
 * stride, and must not overlap one otherwise. A NaN is written as 0x7fc00000. Results depend on the
 * inputs only. All return KVANT_BAD_SHAPE for negative sizes or a number that is not allowed,
 * KVANT_BAD_ALIGNMENT for floats not aligned to 4 bytes, and leave `out` untouched then.
 * threads: at most; 0 for the set number. */

/* y = (x * r) * weight, r = 1 / sqrt(sum x^2 / cols + eps).
 *   weight                cols floats, or null for 1
 *   eps                   finite, not negative */
int32_t kvant_rms_norm(const float* x, int64_t x_stride, const float* weight, double eps, int64_t rows,
                       int64_t cols, float* out, int64_t out_stride, int32_t threads);

/* y = exp(x * scale - max(x * scale)), divided by the sum of these over the row.
 *   scale                 finite
 * A row that holds a NaN, +inf after scaling, or nothing but -inf becomes NaN. */
int32_t kvant_softmax(const float* x, int64_t x_stride, double scale, int64_t rows, int64_t cols, float* out,
                      int64_t out_stride, int32_t threads);

/* Walsh-Hadamard transform of every `block` columns: out = H (signs * x) / sqrt(block), H symmetric, of +1 and -1, in
 * the order of Sylvester's construction; or, undone, out = signs * (H x / sqrt(block)).
 *   block                 a power of two from 16 to 512 that divides cols
 *   signs                 `block` floats of +1 and -1, or null for +1
 *   out                   may be x */
int32_t kvant_hadamard(const float* x, int64_t x_stride, int64_t rows, int64_t cols, int32_t block, const float* signs,
                       bool inverse, float* out, int64_t out_stride, int32_t threads);

/* out = x * factor, element by element; out may be x.
 *   factor                finite, rounded to f32 */
int32_t kvant_scale(const float* x, int64_t x_stride, double factor, int64_t rows, int64_t cols, float* out,
                    int64_t out_stride, int32_t threads);

/* y += x, element by element.
 *   x_stride              0 adds one row to all rows of y */
int32_t kvant_add(const float* x, int64_t x_stride, int64_t rows, int64_t cols, float* y, int64_t y_stride,
                  int32_t threads);

/* What a token's experts are weighted with. */
enum {
  KVANT_SHARES_OF_ALL = 0,    /* softmax over the scores of all experts */
  KVANT_SHARES_NORMED = 1,    /* the same, divided by the sum over those chosen, added up in order */
  KVANT_SHARES_OF_CHOSEN = 2  /* softmax over the scores of those chosen */
};

/* Chooses the `top` best experts of each row of scores: best first, the lower id first of equals, NaN last.
 *   ids, shares           [rows, top] without gaps */
int32_t kvant_route(const float* scores, int64_t stride, int64_t rows, int64_t experts, int64_t top,
                    int32_t shares_of, int64_t* ids, float* shares, int32_t threads);

enum { KVANT_SILU = 0, KVANT_GELU = 1, KVANT_GELU_TANH = 2, KVANT_RELU = 3 };

/* y = activation(gate) * up. KVANT_BAD_FORMAT when there is no such activation. */
int32_t kvant_activation_mul(int32_t activation, const float* gate, int64_t gate_stride, const float* up,
                             int64_t up_stride, int64_t rows, int64_t cols, float* out, int64_t out_stride,
                             int32_t threads);

/* Rotates pairs of the first `rotary` of head_dim numbers by position / scale * theta^(-2i / rotary) /
 * freq_factors[i]; the other numbers are copied.
 *   x                     [tokens, heads, head_dim], strides in elements
 *   positions             one for each token
 *   rotary                even, 2 .. head_dim
 *   interleaved           pairs are (2i, 2i + 1) instead of (i, i + rotary / 2)
 *   theta, scale          finite; theta at least 1, scale above 0
 *   freq_factors          rotary / 2 finite numbers above 0, or null for 1
 * Angles up to 1e8 are taken. */
int32_t kvant_rope(const float* x, int64_t token_stride, int64_t head_stride, const int64_t* positions,
                   int64_t tokens, int32_t heads, int32_t head_dim, int32_t rotary, bool interleaved,
                   double theta, double scale, const float* freq_factors, float* out,
                   int64_t out_token_stride, int64_t out_head_stride, int32_t threads);

/* ---- caches of keys and values ---- */

/* How keys and values are stored. Codecs from KVANT_KV_Q8_0 on quantize; lm4, lm3 and lm2 are codebooks of Lloyd and
 * Max with one scale a row, for rotated vectors. kivi4 and kivi2 have scale and minimum for 32 elements of a value, and
 * for 32 tokens of each channel of keys; a row sees the tokens of a group that is not full as halves. */
enum {
  KVANT_KV_F32 = 0, KVANT_KV_F16, KVANT_KV_BF16, KVANT_KV_Q8_0, KVANT_KV_Q6_0, KVANT_KV_Q5_1, KVANT_KV_Q5_0,
  KVANT_KV_Q4_1, KVANT_KV_Q4_0, KVANT_KV_IQ4_NL, KVANT_KV_LM4, KVANT_KV_LM3, KVANT_KV_LM2,
  KVANT_KV_KIVI4, KVANT_KV_KIVI2
};
int32_t kvant_kv_codec_count(void);
/* Null when there is none of the number. */
const char* kvant_kv_codec_name(int32_t codec);
/* Bytes of one row of a file of `dim` elements, as kvant_sequence_read gives it; of a page of 64 tokens. */
int64_t kvant_kv_row_bytes(int32_t codec, int32_t dim);

/* The scale of a row of a codebook: the norm is kept, the projection on the row is kept, or the error is least. */
enum { KVANT_SCALE_NORM = 0, KVANT_SCALE_UNBIASED = 1, KVANT_SCALE_LEAST = 2 };

/* One side of a layer, keys or values. What is stored of x is the Hadamard transform, in blocks of `rotate` elements
 * after a product with `signs`, of (x - center) / equalize; queries and results are transformed to fit. */
typedef struct {
  int32_t codec, scale;
  int32_t dim;             /* at most 1024 */
  int32_t rotate;          /* 16 to 512, a power of two that divides dim; 0 for none */
  const float* signs;      /* [rotate] of +1 and -1, or null */
  const float* center;     /* [heads, dim], or null; of keys only */
  const float* equalize;   /* [heads, dim] above 0, or null; of keys only */
} kvant_kv_side;

typedef struct {
  int32_t heads;
  kvant_kv_side k, v;
  int64_t window;          /* a token sees so many keys at most, its own among them; 0 for all */
  int64_t sink, tail;      /* so many first keys, and so many before a token, its own among them, are seen as halves */
  int64_t chunk;           /* a token sees keys of its own chunk of so many only; 0 for all */
  bool fine;               /* queries (unless keys are coded by channel) and weights are taken in sixteen bits, not in
                            * eight: twice the products */
  bool view;               /* values are the first v.dim elements of each key as it is stored: nothing else is read of v,
                              rotate divides both sizes, and there is neither center nor equalize */
} kvant_kv_layer;

typedef struct kvant_cache kvant_cache;
typedef struct kvant_sequence kvant_sequence;

/* budget: bytes of all pages in use; 0 for no bound. What the layers point to is copied. */
int32_t kvant_cache_new(const kvant_kv_layer* layers, int32_t count, int64_t budget, kvant_cache** cache);
/* Its sequences may be freed later. */
void kvant_cache_free(kvant_cache* cache);
typedef struct {
  int64_t used, reserved;  /* bytes of pages in use, and of the memory they come from */
  int64_t pages;
} kvant_cache_stats;
void kvant_cache_usage(const kvant_cache* cache, kvant_cache_stats* stats);

int32_t kvant_sequence_new(kvant_cache* cache, kvant_sequence** sequence);
void kvant_sequence_free(kvant_sequence* sequence);
/* Shares all pages; each is copied when one of the two writes to it. */
int32_t kvant_sequence_fork(const kvant_sequence* sequence, kvant_sequence** fork);
/* Tokens of every layer, or for layer >= 0 of that one, those that were evicted among them. */
int64_t kvant_sequence_length(const kvant_sequence* sequence, int32_t layer);
/* Tokens that one head holds; -1 where there is no such head. */
int64_t kvant_sequence_held(const kvant_sequence* sequence, int32_t layer, int32_t head);
/* Forgets all tokens from `length` on. KVANT_BAD_SHAPE where there are not so many, or where a window has let go of
 * what would be seen again; KVANT_FULL where a group of keys that opens again has no room for its halves; nothing is
 * forgotten then. */
int32_t kvant_sequence_truncate(kvant_sequence* sequence, int64_t length);

/* Keys are turned by the angles of `by` positions, as kvant_rope turns them. */
typedef struct {
  int64_t by;
  double theta, scale;
  const float* freq_factors;
  int32_t rotary;
  bool interleaved;
} kvant_turn;

/* What is kept of one head, which holds `held` tokens: ascending numbers of them. Codes stay as they are; keys of those numbered
 * turn_begin .. turn_end - 1 among them are decoded, turned and coded again. */
typedef struct {
  int32_t layer, head;
  int64_t held;
  const int64_t* kept;
  int64_t count;
  const kvant_turn* turn;  /* or null */
  int64_t turn_begin, turn_end;
} kvant_selection;

/* Leaves heads with some of their tokens; other heads stay as they are.
 *   evict         later tokens keep their positions, and queries of tokens that were there are served no more, but
 *                 for the last; heads may differ. Else tokens behind a gap move forward, alike in all heads of a layer.
 * KVANT_BAD_SHAPE for what is no such selection, where a window has let go of what would be seen again, or where a number
 * is too large once it was turned; KVANT_FULL where a page that is shared cannot be copied. Nothing changes then. */
int32_t kvant_sequence_select(kvant_sequence* sequence, const kvant_selection* heads, int64_t count, bool evict,
                              int32_t threads);

/* Appends `tokens` tokens to a layer.
 *   k, v          [tokens, heads, dim], strides in elements, of `type`; v is null where values are a view of keys
 *   bad           receives token * heads + head of the first row with a NaN, an infinity or a number too large for its
 *                 codec, else -1; may be null
 * KVANT_BAD_SHAPE for such a row, KVANT_FULL past the budget; the sequence is as it was then. */
int32_t kvant_sequence_append(kvant_sequence* sequence, int32_t layer, int64_t tokens, const void* k, int32_t k_type,
                              int64_t k_token_stride, int64_t k_head_stride, const void* v, int32_t v_type,
                              int64_t v_token_stride, int64_t v_head_stride, int32_t threads, int64_t* bad);

typedef struct {
  const float* q;          /* [tokens, heads, dim], strides in elements: of the last tokens of the layer; `heads` a multiple
                              of the key heads, of which head h reads number h / (heads / key heads) */
  int64_t tokens, token_stride, head_stride;
  int32_t heads;
  float scale, softcap;    /* of the scores: cap * tanh(score / cap), 0 for none */
  bool causal;             /* a token sees keys up to its own, else all */
  bool exact;              /* codes are decoded and all products are of floats */
  const float* sinks;      /* for each head the score of a key without a value; or null */
  float* out;              /* [tokens, heads, dim of values] without gaps; overlaps nothing that is read */
  float* lse;              /* [tokens, heads], the logarithm of the sum of exp(score); or null */
} kvant_attention_query;

/* Attention of the last tokens of a layer. Results depend on what was appended and the queries only. */
int32_t kvant_sequence_attend(const kvant_sequence* sequence, int32_t layer, const kvant_attention_query* query,
                              int32_t threads);

/* The same for several sequences of one cache in one call, with the bits that each alone would give: short ones leave no
 * thread without work. Sequence i has tokens[i] tokens, behind those of the sequences before it, in arrays of `all`
 * tokens, or query->tokens. All are served or none: `which` receives the number of a sequence that is refused, else -1; it
 * may be null. A sequence may come twice in kvant_cache_attend only. `bad` counts tokens through all sequences. */
int32_t kvant_cache_append(kvant_cache* cache, kvant_sequence* const* sequences, const int64_t* tokens, int64_t count,
                           int32_t layer, int64_t all, const void* k, int32_t k_type, int64_t k_token_stride,
                           int64_t k_head_stride, const void* v, int32_t v_type, int64_t v_token_stride,
                           int64_t v_head_stride, int32_t threads, int64_t* which, int64_t* bad);
int32_t kvant_cache_attend(const kvant_cache* cache, const kvant_sequence* const* sequences, const int64_t* tokens,
                           int64_t count, int32_t layer, const kvant_attention_query* query, int32_t threads,
                           int64_t* which);

/* Rows first .. first + tokens - 1 of one head, of keys (side 0) or values (1), as they are stored: ggml's blocks where
 * the codec is a format of ggml; or as floats, transforms taken back. A view has no rows of values, and keys that are
 * coded by channel (kivi4, kivi2) have none that are bytes: KVANT_BAD_FORMAT. */
int32_t kvant_sequence_read(const kvant_sequence* sequence, int32_t layer, int32_t side, int32_t head, int64_t first,
                            int64_t tokens, uint8_t* out);
int32_t kvant_sequence_decode(const kvant_sequence* sequence, int32_t layer, int32_t side, int32_t head, int64_t first,
                              int64_t tokens, float* out);
/* Appends rows [tokens, heads] as kvant_sequence_read gives them; v is null where values are a view of keys. */
int32_t kvant_sequence_write(kvant_sequence* sequence, int32_t layer, int64_t tokens, const uint8_t* k, const uint8_t* v);

/* The pages of one head as they are, with all that a sequence knows of them. */
int64_t kvant_sequence_state_bytes(const kvant_sequence* sequence, int32_t layer, int32_t head);
int32_t kvant_sequence_save(const kvant_sequence* sequence, int32_t layer, int32_t head, uint8_t* out, int64_t bytes);
/* Into a head without tokens of a cache with the same layer. in_place: pages are not copied but read where they lie,
 * aligned to 64 bytes, until the last sequence that shares them is freed. KVANT_BAD_SHAPE for what is no such state. */
int32_t kvant_sequence_load(kvant_sequence* sequence, int32_t layer, int32_t head, const uint8_t* state, int64_t bytes,
                            bool in_place);

/* ---- quality ---- */

/* Of two rows of logits. */
typedef struct {
  double kl;                   /* KL(base || test) of their softmax, nats */
  double base_lse, test_lse;   /* log of the sum of the exponentials */
  int64_t base_top, test_top;  /* index of the largest, the first of equals */
} kvant_row_divergence;

/* Compares rows of `vocab` logits, at least one, strides in elements; fills one struct per row. Equal rows give
 * exactly 0. -inf in the base counts nothing; in the test alone it makes kl infinite. Logits below -2^20
 * count as -2^20; a NaN, or a largest logit beyond 2^19 in magnitude, makes its row's lse and kl NaN. */
int32_t kvant_divergence(const float* base, int64_t base_stride, const float* test, int64_t test_stride,
                         int64_t rows, int64_t vocab, kvant_row_divergence* out, int32_t threads);

/* ---- files ---- */

/* Walks `count` strings (u64 length, bytes) from `offset` on. Returns the offset behind the last, or
 * -1 when they run past `size`. utf8 receives whether all are well-formed. offsets, when not null,
 * receives count + 1 places: where each length stands, and the end. */
int64_t kvant_scan_strings(const uint8_t* data, int64_t size, int64_t offset, int64_t count, bool* utf8,
                           uint64_t* offsets);

/* ---- probes: what this machine gives ---- */

/* Loops with the ISA in use and nothing of a format in them: divide by the time they take. Memory must
 * be aligned to 64 bytes (KVANT_BAD_ALIGNMENT) and its size a multiple of 4096 bytes
 * (KVANT_BAD_SHAPE). threads: at most; 0 for the set number. */

/* Reads all of data, at `streams` (1, 2, 4 or 8) places in turn. sum receives the sum of its 32-bit words,
 * modulo 2^32; may be null. */
int32_t kvant_probe_read(const void* data, int64_t bytes, int32_t streams, int32_t threads, uint32_t* sum);

/* Copies, through the caches or around those of the target. */
int32_t kvant_probe_copy(const void* from, void* to, int64_t bytes, bool around, int32_t threads);

/* Writes zeros around the caches and meanwhile reads `from_bytes` bytes (any number, 0 for none) of
 * `from`, evenly: the memory traffic of a decoder. */
int32_t kvant_probe_store(void* to, int64_t bytes, const void* from, int64_t from_bytes, int32_t threads);

enum { KVANT_PROBE_INT8 = 0, KVANT_PROBE_F32 = 1 };

/* Multiplies and adds in registers: `steps` steps in each of `tasks` tasks, which the threads share.
 *   products   receives the multiply-adds done
 *   sum        receives the sum of the products, each of which is 1, as long as a lane holds it (at
 *              most 2^24 steps for f32; for int8, up to 2^32 to a task, else modulo that); may be null */
int32_t kvant_probe_products(int32_t kind, int64_t steps, int64_t tasks, int32_t threads, int64_t* products,
                             double* sum);

/* Adds 16 * steps times, each time waiting for the result: one tick of the clock each. */
void kvant_probe_ticks(int64_t steps);

/* cffi:end */

#ifdef __cplusplus
}
#endif

#endif
