/* y[i] = a[i * sa] op b[i * sb], sa and sb being 0 or 1: what broadcasting leaves of a row. */

/* One function of one type, `a` and `b` being the items in `expression`. EV_STRIDED is one loop; EV_BINARY, for the
 * functions that models spend their time in, is one for each case, so that all of them vectorise. */
#define EV_STRIDED(name, T, R, expression)                                                                   \
    static void EV_FN(binary_##name)(int64_t n, const T *pa, int64_t sa, const T *pb, int64_t sb, R *y)      \
    {                                                                                                        \
        EV_LOOP(const T a = pa[i * sa], const T b = pb[i * sb], y[i] = (R)(expression))                      \
    }

#define EV_BINARY(name, T, R, expression)                                                                    \
    static void EV_FN(binary_##name)(int64_t n, const T *pa, int64_t sa, const T *pb, int64_t sb, R *y)      \
    {                                                                                                        \
        const T a0 = *pa, b0 = *pb;                                                                          \
        if (sa && sb) EV_LOOP(const T a = pa[i], const T b = pb[i], y[i] = (R)(expression))                  \
        else if (sa) EV_LOOP(const T a = pa[i], const T b = b0, y[i] = (R)(expression))                      \
        else if (sb) EV_LOOP(const T a = a0, const T b = pb[i], y[i] = (R)(expression))                      \
        else EV_LOOP(const T a = a0, const T b = b0, y[i] = (R)(expression))                                 \
    }

#define EV_LOOP(operand_a, operand_b, statement)                                                             \
    {                                                                                                        \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++)                                                 \
        {                                                                                                    \
            operand_a;                                                                                       \
            operand_b;                                                                                       \
            statement;                                                                                       \
        }                                                                                                    \
    }

#define EV_CASE(op, name, suffix)                                                                            \
    case op: EV_FN(binary_##name##_##suffix)(n, a, sa, b, sb, y); break;

#define EV_COMPARISONS(KIND, T, suffix)                                                                      \
    KIND(equal_##suffix, T, uint8_t, a == b)                                                                 \
    KIND(less_##suffix, T, uint8_t, a < b)                                                                   \
    KIND(less_equal_##suffix, T, uint8_t, a <= b)

#define EV_COMPARISON_CASES(suffix)                                                                          \
    EV_CASE(EV_EQUAL, equal, suffix)                                                                         \
    EV_CASE(EV_LESS, less, suffix)                                                                           \
    EV_CASE(EV_LESS_OR_EQUAL, less_equal, suffix)

/* Python's modulo: the remainder takes the sign of b, and a zero as well. */
EV_INLINE float EV_FN(mod_f32)(float a, float b)
{
    const float r = fmodf(a, b);
    return r == 0.0f ? copysignf(0.0f, b) : (r < 0.0f) != (b < 0.0f) ? r + b : r;
}

EV_INLINE double EV_FN(mod_f64)(double a, double b)
{
    const double r = fmod(a, b);
    return r == 0.0 ? copysign(0.0, b) : (r < 0.0) != (b < 0.0) ? r + b : r;
}

/* Min and Max hand NaN on from either side. */
#define EV_FLOATS(KIND, T, s)                                                                                \
    KIND(add_##s, T, T, a + b)                                                                               \
    KIND(sub_##s, T, T, a - b)                                                                               \
    KIND(mul_##s, T, T, a * b)                                                                               \
    KIND(div_##s, T, T, a / b)                                                                               \
    KIND(min_##s, T, T, (a < b) | (a != a) ? a : b)                                                          \
    KIND(max_##s, T, T, (a > b) | (a != a) ? a : b)                                                          \
    KIND(prelu_##s, T, T, a < 0 ? a * b : a)                                                                 \
    EV_STRIDED(mod_##s, T, T, EV_FN(mod_##s)(a, b))                                                          \
    EV_COMPARISONS(KIND, T, s)

#define EV_FLOAT_CASES(s)                                                                                    \
    EV_CASE(EV_ADD, add, s)                                                                                  \
    EV_CASE(EV_SUB, sub, s)                                                                                  \
    EV_CASE(EV_MUL, mul, s)                                                                                  \
    EV_CASE(EV_DIV, div, s)                                                                                  \
    EV_CASE(EV_MIN, min, s)                                                                                  \
    EV_CASE(EV_MAX, max, s)                                                                                  \
    EV_CASE(EV_PRELU, prelu, s)                                                                              \
    EV_CASE(EV_MOD, mod, s)                                                                                  \
    EV_CASE(EV_FMOD, fmod, s)                                                                                \
    EV_CASE(EV_POW, pow, s)                                                                                  \
    EV_COMPARISON_CASES(s)

EV_FLOATS(EV_BINARY, float, f32)
EV_FLOATS(EV_STRIDED, double, f64)
EV_STRIDED(fmod_f32, float, float, fmodf(a, b))
EV_STRIDED(fmod_f64, double, double, fmod(a, b))
EV_STRIDED(pow_f64, double, double, pow(a, b))
EV_STRIDED(powf_f32, float, float, powf(a, b))

/* The exponents that models use are one for all. */
static void EV_FN(binary_pow_f32)(int64_t n, const float *x, int64_t sx, const float *exponent, int64_t se, float *y)
{
    const float e = *exponent;
    if (se || !sx || (e != 2.0f && e != 3.0f && e != 0.5f))
        EV_FN(binary_powf_f32)(n, x, sx, exponent, se, y);
    else if (e == 2.0f)
        EV_LOOP(const float a = x[i], , y[i] = a * a)
    else if (e == 3.0f)
        EV_LOOP(const float a = x[i], , y[i] = a * a * a)
    else /* + 0, as pow(-0, 1/2) is 0 */
        EV_LOOP(const float a = x[i], , y[i] = a == -INFINITY ? INFINITY : sqrtf(a) + 0.0f)
}

static void EV_FN(binary_f32)(int op, int64_t n, const void *a, int64_t sa, const void *b, int64_t sb, void *y)
{
    switch (op) {
        EV_FLOAT_CASES(f32)
    }
}

static void EV_FN(binary_f64)(int op, int64_t n, const void *a, int64_t sa, const void *b, int64_t sb, void *y)
{
    switch (op) {
        EV_FLOAT_CASES(f64)
    }
}

/* Integers wrap. The caller has made sure that no divisor is 0; the smallest number / -1 wraps to itself. A shift by
 * fewer than 0 or by all bits leaves the sign's extension: 0, or -1 to the right of a negative number. */
#define EV_INTEGERS(KIND, T, U, s)                                                                           \
    KIND(add_##s, T, T, (U)a + (U)b)                                                                         \
    KIND(sub_##s, T, T, (U)a - (U)b)                                                                         \
    KIND(mul_##s, T, T, (U)a *(U)b)                                                                          \
    EV_STRIDED(div_##s, T, T, b == (T)-1 && (T)-1 < 0 ? (T)(0 - (U)a) : (T)(a / b))                          \
    EV_BINARY(min_##s, T, T, a < b ? a : b)                                                                  \
    EV_BINARY(max_##s, T, T, a > b ? a : b)                                                                  \
    EV_INLINE T EV_FN(fmod_##s)(T a, T b) { return b == (T)-1 && (T)-1 < 0 ? (T)0 : (T)(a % b); }        \
    EV_INLINE T EV_FN(mod_##s)(T a, T b)                                                                 \
    {                                                                                                        \
        const T r = EV_FN(fmod_##s)(a, b);                                                                   \
        return r != 0 && (r < 0) != (b < 0) ? (T)(r + b) : r;                                                \
    }                                                                                                        \
    EV_INLINE T EV_FN(right_##s)(T a, T b)                                                               \
    {                                                                                                        \
        const int most = (int)sizeof(T) * 8 - 1, outside = b < 0 || b > (T)most;                             \
        return outside && (T)-1 > 0 ? (T)0 : (T)(a >> (outside ? most : (int)b));                            \
    }                                                                                                        \
    EV_STRIDED(mod_##s, T, T, EV_FN(mod_##s)(a, b))                                                           \
    EV_STRIDED(fmod_##s, T, T, EV_FN(fmod_##s)(a, b))                                                         \
    EV_STRIDED(and_##s, T, T, a &b)                                                                           \
    EV_STRIDED(or_##s, T, T, a | b)                                                                           \
    EV_STRIDED(xor_##s, T, T, a ^ b)                                                                          \
    EV_STRIDED(left_##s, T, T, b < 0 || b >= (T)(sizeof(T) * 8) ? 0 : (U)a << (int)b)                         \
    EV_STRIDED(right_##s, T, T, EV_FN(right_##s)(a, b))                                                       \
    EV_COMPARISONS(KIND, T, s)                                                                                           \
    static void EV_FN(binary_##s)(int op, int64_t n, const void *a, int64_t sa, const void *b, int64_t sb,   \
                                  void *y)                                                                   \
    {                                                                                                        \
        switch (op) {                                                                                        \
            EV_CASE(EV_ADD, add, s)                                                                          \
            EV_CASE(EV_SUB, sub, s)                                                                          \
            EV_CASE(EV_MUL, mul, s)                                                                          \
            EV_CASE(EV_DIV, div, s)                                                                          \
            EV_CASE(EV_MIN, min, s)                                                                          \
            EV_CASE(EV_MAX, max, s)                                                                          \
            EV_CASE(EV_MOD, mod, s)                                                                          \
            EV_CASE(EV_FMOD, fmod, s)                                                                        \
            EV_CASE(EV_BITAND, and, s)                                                                       \
            EV_CASE(EV_BITOR, or, s)                                                                         \
            EV_CASE(EV_BITXOR, xor, s)                                                                       \
            EV_CASE(EV_SHIFT_LEFT, left, s)                                                                  \
            EV_CASE(EV_SHIFT_RIGHT, right, s)                                                                \
            EV_COMPARISON_CASES(s)                                                                           \
        }                                                                                                    \
    }

EV_INTEGERS(EV_STRIDED, int8_t, uint8_t, s8)
EV_INTEGERS(EV_STRIDED, uint8_t, uint8_t, u8)
EV_INTEGERS(EV_BINARY, int32_t, uint32_t, s32)
EV_INTEGERS(EV_BINARY, int64_t, uint64_t, s64)

/* y[i] = condition[i * sc] ? a[i * sa] : b[i * sb] for items of `width` bytes. */
#define EV_SELECT(T)                                                                                         \
    {                                                                                                        \
        const T *pa = a, *pb = b;                                                                            \
        T *out = y;                                                                                          \
        if (sa && sb) {                                                                                      \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) out[i] = c[i] ? pa[i] : pb[i];              \
        } else {                                                                                             \
            const T a0 = *pa, b0 = *pb;                                                                      \
            _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++)                                             \
            {                                                                                                \
                const T va = sa ? pa[i] : a0, vb = sb ? pb[i] : b0;                                          \
                out[i] = c[i] ? va : vb;                                                                     \
            }                                                                                                \
        }                                                                                                    \
        break;                                                                                               \
    }

static void EV_FN(select)(int64_t width, int64_t n, const uint8_t *c, int64_t sc, const void *a, int64_t sa,
                          const void *b, int64_t sb, void *y)
{
    static const uint8_t ones[256] = {[0 ... 255] = 1}, zeros[256];
    if (!sc && n > 256) { /* one condition for the row, in pieces as long as the constant */
        for (int64_t i = 0; i < n; i += 256)
            EV_FN(select)(width, n - i < 256 ? n - i : 256, c, 0, (const char *)a + i * sa * width, sa,
                          (const char *)b + i * sb * width, sb, (char *)y + i * width);
        return;
    }
    if (!sc) c = *c ? ones : zeros;
    switch (width) {
    case 1: EV_SELECT(uint8_t)
    case 2: EV_SELECT(uint16_t)
    case 4: EV_SELECT(uint32_t)
    case 8: EV_SELECT(uint64_t)
    }
}

#undef EV_LOOP
#undef EV_BINARY
#undef EV_STRIDED
#undef EV_CASE
#undef EV_COMPARISONS
#undef EV_COMPARISON_CASES
#undef EV_FLOATS
#undef EV_FLOAT_CASES
#undef EV_INTEGERS
#undef EV_SELECT
