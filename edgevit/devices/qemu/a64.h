/* Classes of A64 instructions, by their encoding in the Arm Architecture Reference Manual (DDI 0487), chapter C4.
 *
 * Every instruction is in exactly one class, so the classes add up to all that were executed. The first four are the
 * products of matrix kernels, and only these and loads and stores need exact patterns; SVE is not told apart.
 */
#include <stdint.h>

enum a64_class {
    A64_MULTIPLY_ADD, /* float multiply-add of vectors: FMLA, FMLS; scalar code depends on data and is `other` */
    A64_DOT,          /* four int8 products into 32 bits: SDOT, UDOT, USDOT, SUDOT */
    A64_MATRIX,       /* int8 or bf16 matrix product: SMMLA, UMMLA, USMMLA, BFMMLA */
    A64_WIDENING,     /* widening integer product: SMLAL, SMLSL, SMULL, their unsigned and second-half forms */
    A64_LOAD,
    A64_STORE,
    A64_BRANCH,
    A64_OTHER,
    A64_CLASSES
};

static const char *const a64_names[A64_CLASSES] = {
    "multiply_add", "dot", "matrix", "widening", "load", "store", "branch", "other",
};

static inline enum a64_class a64_memory(uint32_t op)
{
    uint32_t opc = op >> 22 & 3;
    if ((op & 0x3B000000) == 0x18000000) /* literal */
        return A64_LOAD;
    if ((op & 0x3A000000) == 0x38000000) { /* one register, any addressing */
        if ((op & 0x3B200C00) == 0x38200000) /* atomic read-modify-write */
            return A64_LOAD;
        return op >> 26 & 1 ? (opc & 1 ? A64_LOAD : A64_STORE) : (opc ? A64_LOAD : A64_STORE);
    }
    return opc & 1 ? A64_LOAD : A64_STORE; /* pairs, exclusives, vector structures: bit 22 is L */
}

static inline enum a64_class a64_classify(uint32_t op)
{
    /* FMLA and FMLS: single and double, half, and both by element. */
    if ((op & 0xBF20FC00) == 0x0E20CC00 || (op & 0xBF60FC00) == 0x0E400C00 ||
        (op & 0xBF80B400) == 0x0F801000 || (op & 0xBFC0B400) == 0x0F001000)
        return A64_MULTIPLY_ADD;
    /* SDOT/UDOT, USDOT, and the same by element, SUDOT last. */
    if ((op & 0x9FE0FC00) == 0x0E809400 || (op & 0xBFE0FC00) == 0x0E809C00 || (op & 0x9FC0F400) == 0x0F80E000 ||
        (op & 0xBFC0F400) == 0x0F80F000 || (op & 0xBFC0F400) == 0x0F00F000)
        return A64_DOT;
    if ((op & 0xDFE0FC00) == 0x4E80A400 || (op & 0xFFE0FC00) == 0x4E80AC00 || (op & 0xFFE0FC00) == 0x6E40EC00)
        return A64_MATRIX;
    /* [SU]MLAL, [SU]MLSL, [SU]MULL, and the same by element; size 11 is another instruction. */
    if ((op & 0x00C00000) != 0x00C00000 &&
        ((op & 0x9F20DC00) == 0x0E208000 || (op & 0x9F20FC00) == 0x0E20C000 || (op & 0x9F00B400) == 0x0F002000 ||
         (op & 0x9F00F400) == 0x0F00A000))
        return A64_WIDENING;
    if ((op & 0x0A000000) == 0x08000000)
        return a64_memory(op);
    if ((op & 0x1C000000) == 0x14000000)
        return A64_BRANCH;
    return A64_OTHER;
}
