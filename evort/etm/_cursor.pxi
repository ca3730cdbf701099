# A bounds-checked cursor over a FlatBuffer: tables, fields, vectors and strings are looked at only after their place
# was checked. Part of _reader.pyx.
#
# Two rules keep any input, however hostile, from costing more than its own size:
# - Every table, vector and string that is opened claims its bytes, and all claims together may not exceed the
#   metadata. So objects that overlap, are shared or contain themselves run out of budget (vtables are shared by design
#   and claim nothing; reading one takes constant time).
# - Every length is compared with the bytes left before anything is allocated for it.
# The metadata is a private copy, so that it cannot change between a check and a use.

cdef struct Meta:
    const uint8_t *base
    int64_t length
    int64_t budget  # bytes that may still be claimed
    int64_t origin  # of the metadata in the file, for messages

cdef struct Table:
    int64_t at      # from here on, places are relative to the metadata
    int64_t vtable
    int64_t vtable_size
    int64_t size


cdef int fail(const Meta *m, int64_t at, str field, str problem) except -1:
    raise EtmFormatError(f"byte {m.origin + at}, {field}: {problem}")


cdef inline uint16_t load16(const Meta *m, int64_t at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, m.base + at, 2)
    return value


cdef inline uint32_t load32(const Meta *m, int64_t at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, m.base + at, 4)
    return value


cdef inline uint64_t load64(const Meta *m, int64_t at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, m.base + at, 8)
    return value


cdef inline double load_double(const Meta *m, int64_t at) noexcept nogil:
    cdef double value
    memcpy(&value, m.base + at, 8)
    return value


cdef inline int alignment_of(uint64_t length) noexcept nogil:
    """What the offset of a blob of so many bytes must be a multiple of: short ones may lie close together."""
    return ALIGN if length >= 4096 else 8 if length >= 8 else 4


cdef inline int claim(Meta *m, int64_t at, int64_t size, str field) except -1:
    """Checks that `size` bytes lie in the metadata, and takes them from the budget."""
    if at < 0 or size > m.length - at:
        fail(m, at, field, f"{size} bytes run past the end of the metadata")
    m.budget -= size
    if m.budget < 0:
        fail(m, at, field, "objects overlap, or refer to each other in a circle")
    return 0


cdef inline int64_t follow(const Meta *m, int64_t at, str field) except -1:
    """Where the offset at `at` (checked already) points to; a multiple of 4 with 4 bytes there."""
    cdef uint32_t offset = load32(m, at)
    cdef int64_t target = at + offset
    if offset == 0 or target % 4 or target > m.length - 4:
        fail(m, at, field, f"offset {offset} points nowhere")
    return target


cdef inline int open_table(Meta *m, int64_t at, str field, Table *t) except -1:
    """Opens the table that starts at `at`, which `follow` gave."""
    t.at = at
    t.vtable = at - <int32_t> load32(m, at)
    if t.vtable < 0 or t.vtable % 2 or t.vtable > m.length - 4:
        fail(m, at, field, "its vtable lies outside the metadata")
    t.vtable_size = load16(m, t.vtable)
    t.size = load16(m, t.vtable + 2)
    if t.vtable_size < 4 or t.vtable_size % 2 or t.vtable_size > m.length - t.vtable or t.size < 4:
        fail(m, t.vtable, field, "its vtable is malformed")
    return claim(m, at, t.size, field)


cdef inline int64_t slot(const Meta *m, const Table *t, int where, int width, str field) except -1:
    """Where a field of `width` bytes is, or 0 where it is absent. `where`: its place in the vtable."""
    cdef int64_t offset
    if where > t.vtable_size - 2:
        return 0
    offset = load16(m, t.vtable + where)
    if offset == 0:
        return 0
    if offset < 4 or offset > t.size - width or (t.at + offset) % min(width, 8):
        fail(m, t.vtable + where, field, f"{offset} is no place in a table of {t.size} bytes")
    return t.at + offset


cdef inline uint32_t get32(const Meta *m, const Table *t, int where, str field) except? 0xFFFFFFFF:
    cdef int64_t at = slot(m, t, where, 4, field)
    return load32(m, at) if at else 0


cdef inline int64_t get64(const Meta *m, const Table *t, int where, str field) except? -1:
    cdef int64_t at = slot(m, t, where, 8, field)
    return <int64_t> load64(m, at) if at else 0


cdef inline int get8(const Meta *m, const Table *t, int where, str field, int default = 0) except -1:
    cdef int64_t at = slot(m, t, where, 1, field)
    return m.base[at] if at else default


cdef inline int64_t vector(
    Meta *m, const Table *t, int where, int width, int align, int64_t *count, str field
) except -1:
    """The place of the first item of a vector field, 0 where it is absent (then `count` is 0)."""
    cdef int64_t at = slot(m, t, where, 4, field)
    count[0] = 0
    if at == 0:
        return 0
    at = follow(m, at, field)
    cdef int64_t n = load32(m, at)
    if n > (m.length - at - 4) // width:
        fail(m, at, field, f"{n} items run past the end of the metadata")
    if n and (at + 4) % align:
        fail(m, at, field, f"its items are not aligned to {align} bytes")
    claim(m, at, 4 + n * width, field)
    count[0] = n
    return at + 4


cdef inline bint child(Meta *m, const Table *t, int where, str field, Table *found) except -1:
    """Opens the table that a field refers to; False where it is absent."""
    cdef int64_t at = slot(m, t, where, 4, field)
    if at == 0:
        return False
    open_table(m, follow(m, at, field), field, found)
    return True


cdef str string(Meta *m, int64_t at, str field):
    """The UTF-8 string that the offset at `at` points to."""
    at = follow(m, at, field)
    cdef int64_t n = load32(m, at)
    if n > MAX_STRING:
        fail(m, at, field, f"a string of {n} bytes; the limit is {MAX_STRING}")
    claim(m, at, 4 + n + 1, field)
    try:
        return PyUnicode_DecodeUTF8(<const char *> (m.base + at + 4), n, "strict")
    except UnicodeDecodeError as error:
        fail(m, at + 4 + error.start, field, f"no valid UTF-8 ({error.reason})")
