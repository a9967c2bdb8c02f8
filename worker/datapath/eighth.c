/* A sequential JPEG at an eighth of its size: what each block of 8x8 samples is on average.
 *
 * That average is the block's first coefficient (DC). The 63 others (AC) only have to be stepped
 * over, for which nothing but their number of bits counts: one look at the next LOOK bits steps over
 * several of them at once. libjpeg-turbo, which decodes them one by one, takes over twice as long.
 *
 * The bytes may be anybody's. What is read stays below the end of `work`, as no block takes more
 * than BLOCK_BYTES and none begins later than the bytes read ahead; what is written has its place
 * before the first byte is read. Whatever is odd ends with 0, and somebody else decodes the picture.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    COEFFICIENTS = 64,
    LONGEST_CODE = 16,
    LONGEST_VALUE = 15,   /* bits after a code */
    LONGEST_DIFFERENCE = 11,
    BRIEF = 8,            /* bits of most codes of DC; 7 is as fast, 11 and 13 are slower */
    LOOK = 13,            /* 12 and 14 are no faster; two such tables fit into 32 KiB of cache */
    BLOCK_BYTES = COEFFICIENTS * (LONGEST_CODE + LONGEST_VALUE) / 8 + 1,
    PADDING = 2 * BLOCK_BYTES, /* behind the scan, in `work` */
    TABLES = 2,           /* of each kind, as the baseline allows */
    COMPONENTS = 3,
};

/* Huffman codes as a JPEG has them: how many there are of each length, and what they stand for. */
struct codes {
    uint8_t counts[LONGEST_CODE];
    uint8_t symbols[256];
};

struct component {
    int32_t across, down; /* blocks in an MCU */
    int32_t dc, ac;       /* numbers of its codes */
    int32_t step;         /* the quantiser of DC */
};

struct plan {
    struct codes dc[TABLES], ac[TABLES];
    struct component components[COMPONENTS];
    int32_t count;        /* of components */
    int32_t wide, high;   /* in MCUs */
    int32_t restart;      /* after so many MCUs; 0: never */
};

/* What the next 16 bits begin with: length << 8 | symbol, or 0 if with no code. And the next BRIEF
 * ones, 0 if they do not tell: the whole table is read all over, and would not stay in the cache. */
struct lookup {
    uint16_t whole[1 << LONGEST_CODE], brief[1 << BRIEF];
};

/* What the next LOOK bits step over: END if the block's last, coefficients << 8, bits. */
typedef uint16_t steps[1 << LOOK];
#define END 0x8000

struct tables {
    struct lookup dc[TABLES], ac[TABLES];
    steps over[TABLES];
};

struct bits {
    uint64_t next;        /* from the highest bit on */
    int left;             /* of those, how many are known */
    const uint8_t *at;    /* where the others come from */
};

static int fill_lookup(const struct codes *codes, struct lookup *look)
{
    uint32_t first = 0;
    int symbol = 0;
    for (int length = 1; length <= LONGEST_CODE; length++) {
        uint32_t share = 1u << (LONGEST_CODE - length);
        for (int i = 0; i < codes->counts[length - 1]; i++, symbol++) {
            if (symbol == 256 || first + share > 1u << LONGEST_CODE)
                return 0;
            for (uint32_t j = 0; j < share; j++)
                look->whole[first + j] = (uint16_t)(length << 8 | codes->symbols[symbol]);
            first += share;
        }
    }
    for (uint32_t seen = 0; seen < 1u << BRIEF; seen++) {
        uint16_t code = look->whole[seen << (LONGEST_CODE - BRIEF)];
        look->brief[seen] = code >> 8 <= BRIEF ? code : 0;
    }
    return 1;
}

/* A symbol of AC: so many coefficients are 0, and the value after them has so many bits. */
static inline int zeros(int symbol) { return symbol >> 4; }
static inline int value_bits(int symbol) { return symbol & 15; }
static inline int ends_block(int symbol) { return value_bits(symbol) == 0 && zeros(symbol) < 15; }

static void fill_steps(const struct lookup *look, uint16_t *over)
{
    for (uint32_t seen = 0; seen < 1u << LOOK; seen++) {
        int bits = 0, coefficients = 0, end = 0;
        while (bits < LOOK && !end) {
            uint16_t code = look->whole[seen << (LONGEST_CODE - LOOK) << bits & 0xffff];
            int length = code >> 8, symbol = code & 255;
            if (!code || bits + length > LOOK || coefficients + zeros(symbol) + 1 > COEFFICIENTS)
                break;
            end = ends_block(symbol) ? END : 0;
            coefficients += zeros(symbol) + 1;
            bits += length + value_bits(symbol); /* a value may reach beyond what is seen */
        }
        over[seen] = (uint16_t)(end | coefficients << 8 | bits);
    }
}

/* At least 56 bits are known after it, and `at` moves on by the bytes that have become known. */
static inline void refill(struct bits *bits)
{
    uint64_t fresh;
    memcpy(&fresh, bits->at, sizeof fresh);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    fresh = __builtin_bswap64(fresh);
#endif
    bits->next |= fresh >> bits->left;
    bits->at += (63 - bits->left) >> 3;
    bits->left |= 56;
}

static inline void drop(struct bits *bits, int count)
{
    bits->next <<= count;
    bits->left -= count;
}

static inline uint16_t next_code(struct bits *bits, const struct lookup *look)
{
    uint16_t code = look->whole[bits->next >> (64 - LONGEST_CODE)];
    drop(bits, code >> 8);
    return code;
}

/* Of DC, to that of the block before. */
static inline int read_difference(struct bits *bits, const struct lookup *look,
                                  int *difference)
{
    refill(bits);
    uint16_t code = look->brief[bits->next >> (64 - BRIEF)];
    if (code)
        drop(bits, code >> 8);
    else
        code = next_code(bits, look);
    int count = code & 255;
    if (!code || count > LONGEST_DIFFERENCE)
        return 0;
    *difference = 0;
    if (count) {
        int value = (int)(bits->next >> (64 - count));
        *difference = value < 1 << (count - 1) ? value - (1 << count) + 1 : value;
        drop(bits, count);
    }
    return 1;
}

/* With one look, by at most LOOK - 1 + LONGEST_VALUE bits; 0 if that goes over nothing. */
static inline int step(struct bits *bits, const uint16_t *over, int *at)
{
    uint16_t seen = over[bits->next >> (64 - LOOK)];
    int coefficients = seen >> 8 & 127;
    if (!coefficients || *at + coefficients > COEFFICIENTS)
        return 0; /* a long code, or the block's end lies between two of those seen */
    drop(bits, seen & 255);
    *at = seen & END ? COEFFICIENTS : *at + coefficients;
    return 1;
}

/* From the block's second coefficient to its end. */
static inline int step_over(struct bits *bits, const struct lookup *look, const uint16_t *over)
{
    int at = 1;
    while (at < COEFFICIENTS) {
        refill(bits); /* for two steps */
        if (step(bits, over, &at)) {
            if (at < COEFFICIENTS)
                step(bits, over, &at);
        } else {
            uint16_t code = next_code(bits, look);
            int symbol = code & 255;
            if (!code)
                return 0;
            drop(bits, value_bits(symbol));
            at = ends_block(symbol) ? COEFFICIENTS : at + zeros(symbol) + 1;
        }
    }
    return at == COEFFICIENTS;
}

/* Takes out the zeros that follow each byte of 0xff, up to the next marker, and adds PADDING.
 * Answers the marker, or 0 if there is none; `*scan` is behind it then. */
static int unstuff(const uint8_t **scan, const uint8_t *end, uint8_t *work, size_t *length)
{
    uint8_t *to = work;
    const uint8_t *from = *scan;
    for (;;) {
        const uint8_t *mark = memchr(from, 0xff, (size_t)(end - from));
        if (!mark || mark + 1 == end)
            return 0;
        memcpy(to, from, (size_t)(mark - from));
        to += mark - from;
        from = mark + 2;
        if (mark[1] == 0) {
            *to++ = 0xff;
        } else {
            memset(to, 0, PADDING);
            *length = (size_t)(to - work);
            *scan = from;
            return mark[1];
        }
    }
}

static inline uint8_t average(int dc, int step)
{
    int level = ((dc * step + 4) >> 3) + 128;
    return (uint8_t)(level < 0 ? 0 : level > 255 ? 255 : level);
}

/* The blocks of the MCUs from `mcu` to `stop`; dc starts from 0, as after every restart. */
static int decode_interval(const struct plan *plan, const struct tables *tables, struct bits *bits,
                           const uint8_t *end, int64_t mcu, int64_t stop, uint8_t *const *planes)
{
    int dc[COMPONENTS] = {0};
    for (; mcu < stop; mcu++) {
        int64_t row = mcu / plan->wide, column = mcu % plan->wide;
        for (int c = 0; c < plan->count; c++) {
            const struct component *component = &plan->components[c];
            int64_t stride = (int64_t)plan->wide * component->across;
            for (int y = 0; y < component->down; y++)
                for (int x = 0; x < component->across; x++) {
                    int difference;
                    if (bits->at > end + sizeof bits->next
                        || !read_difference(bits, &tables->dc[component->dc], &difference)
                        || !step_over(bits, &tables->ac[component->ac],
                                      tables->over[component->ac]))
                        return 0;
                    dc[c] += difference;
                    if (dc[c] < INT16_MIN || dc[c] > INT16_MAX)
                        return 0;
                    planes[c][(row * component->down + y) * stride
                              + column * component->across + x] = average(dc[c], component->step);
                }
        }
    }
    return bits->at - bits->left / 8 <= end;
}

/* 1 if every block has its average in `planes`, row by row, one plane per component.
 *
 * file: of `size` bytes; the only scan's coefficients begin at `start`.
 * work: size - start + clipyard_padding() bytes. */
int clipyard_eighth(const struct plan *plan, const uint8_t *file, size_t start, size_t size,
                    uint8_t *work, uint8_t *const *planes)
{
    struct tables *tables = calloc(1, sizeof *tables);
    int whole = tables != NULL;
    for (int i = 0; whole && i < TABLES; i++) {
        whole = fill_lookup(&plan->dc[i], &tables->dc[i])
            && fill_lookup(&plan->ac[i], &tables->ac[i]);
        fill_steps(&tables->ac[i], tables->over[i]);
    }
    const uint8_t *scan = file + start, *end = file + size;
    int64_t mcus = (int64_t)plan->wide * plan->high, share = plan->restart ? plan->restart : mcus;
    for (int64_t mcu = 0; whole && mcu < mcus; mcu += share) {
        int64_t stop = mcu + share < mcus ? mcu + share : mcus;
        size_t length;
        int marker = unstuff(&scan, end, work, &length);
        int wanted = stop < mcus ? 0xd0 + (int)(mcu / share % 8) : 0xd9;
        struct bits bits = {.at = work};
        whole = marker == wanted
            && decode_interval(plan, tables, &bits, work + length, mcu, stop, planes);
    }
    free(tables);
    return whole;
}

size_t clipyard_padding(void) { return PADDING; }
