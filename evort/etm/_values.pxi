# What a file holds beside its graph: strings, and constants as NumPy arrays over the weight segment, after their
# length, place and contents were checked. Part of _reader.pyx.

cdef struct Weights:
    const uint8_t *base
    int64_t length
    int64_t origin         # of the segment in the buffer
    int64_t widen_budget   # bytes of blobs that may still be widened, and be verified: each byte once, so that a file
    int64_t verify_budget  # whose blobs overlap cannot make the reader repeat itself

# By number of the element type: bits of an element in the file (0 for strings), NumPy's number of its dtype at run time
# (-1 for types that no constant has), and the DType (None where there is none).
cdef int[256] _bits
cdef int[256] _numpy
cdef list _dtypes = [None] * 256
memset(_bits, 0, sizeof(_bits))
memset(_numpy, -1, sizeof(_numpy))
for _dtype in DType:
    _dtypes[_dtype] = _dtype
    _bits[_dtype] = BITS.get(_dtype, 0)
    if _dtype in STORAGE:
        _numpy[_dtype] = STORAGE[_dtype].num

cdef enum:  # the element types that the format itself gives a meaning to
    FLOAT = 1
    UINT8 = 2
    INT32 = 6
    INT64 = 7
    STRING = 8
    BOOL = 9
    UINT4 = 21
    INT4 = 22
    UINT2 = 25
    INT2 = 26

cdef frozenset _signed = SIGNED_INTS | {DType.INT4, DType.INT2}
cdef frozenset _integers = INTS | {DType.INT4, DType.INT2, DType.UINT4, DType.UINT2}
cdef tuple _schemes = ("per_tensor", "per_axis", "grouped")
cdef tuple _sparse_kinds = ("n:m", "block")


cdef int64_t product(tuple shape) except -1:
    """Number of elements; -1 with an OverflowError where a tensor of that shape cannot exist."""
    cdef int64_t total = 1, d
    cdef bint empty = False
    for d in shape:
        if d == 0:
            empty = True
        elif d > MAX_ELEMENTS // total:
            raise OverflowError
        else:
            total *= d
    return 0 if empty else total


cdef bytes widen(const uint8_t *packed, int64_t count, int bits, bint is_signed):
    """Items of 4 or 2 bits, the lowest bits of a byte first, as one byte each."""
    wide = PyBytes_FromStringAndSize(NULL, count)
    cdef uint8_t *out = <uint8_t *> PyBytes_AS_STRING(wide)
    cdef int per = 8 // bits, mask = (1 << bits) - 1, half = (1 << (bits - 1)) if is_signed else 0
    cdef int64_t i
    with nogil:
        for i in range(count):
            out[i] = <uint8_t> ((((packed[i // per] >> (bits * (i % per))) & mask) ^ half) - half)
    return wide


cdef int64_t load_integer(const uint8_t *raw, int64_t i, int size, bint is_signed) noexcept nogil:
    """Item i of an integer array; the largest int64 for a uint64 beyond it."""
    cdef int64_t value = 0
    memcpy(&value, raw + i * size, size)
    if size < 8:
        return (value << (64 - 8 * size)) >> (64 - 8 * size) if is_signed else value
    return value if is_signed or value >= 0 else 0x7FFFFFFFFFFFFFFF


cdef class _Values:
    """The metadata and weights of one file while it is read."""

    cdef Meta meta
    cdef Weights weights
    cdef object buffer          # a memoryview of the whole file: while an array has it, no map can be closed
    cdef list strings           # of the metadata, by index
    cdef Py_ssize_t n_strings
    cdef bint checksum
    cdef set verified           # (offset, length, checksum) of blobs
    cdef dict widened           # (offset, length, dtype) of a blob: what it became
    cdef int64_t copied         # bytes of arrays that are no views

    @cython.final
    cdef str name(self, Table *t, int where, str field):
        """The string that a name field refers to."""
        cdef uint32_t index = get32(&self.meta, t, where, field)
        if index >= self.n_strings:
            fail(&self.meta, t.at, field, f"there is no string {index} of {self.n_strings}")
        return <str> self.strings[index]

    @cython.final
    cdef list names(self, Table *t, int where, str field, int64_t limit, int64_t *place):
        """A vector of names; `place` gets where its first item is."""
        cdef int64_t i, n
        cdef uint32_t index
        cdef int64_t at = vector(&self.meta, t, where, 4, 4, &n, field)
        if n > limit:
            fail(&self.meta, at, field, f"{n} items; the limit is {limit}")
        place[0] = at
        cdef list found = [None] * n
        for i in range(n):
            index = load32(&self.meta, at + 4 * i)
            if index >= self.n_strings:
                fail(&self.meta, at + 4 * i, field, f"there is no string {index} of {self.n_strings}")
            found[i] = self.strings[index]
        return found

    @cython.final
    cdef int read_strings(self, Table *model) except -1:
        cdef int64_t i, n
        cdef int64_t at = vector(&self.meta, model, MODEL_AT_STRINGS, 4, 4, &n, "Model.strings")
        if n > MAX_STRINGS:
            fail(&self.meta, at, "Model.strings", f"{n} strings; the limit is {MAX_STRINGS}")
        cdef list strings = [None] * n
        for i in range(n):
            strings[i] = string(&self.meta, at + 4 * i, "Model.strings")
        if n == 0 or strings[0] != "":
            fail(&self.meta, at, "Model.strings", "the first string must be the empty one")
        if len(set(strings)) != n:
            fail(&self.meta, at, "Model.strings", "a string is there twice")
        self.strings, self.n_strings = strings, n
        return 0

    @cython.final
    cdef tuple read_shape(self, Table *t, int where, str field, int64_t *count):
        """Dimensions, or None where they are absent. `count`: the number of elements, -1 where that is not known."""
        cdef Meta *m = &self.meta
        cdef int64_t i, n, d, total = 1
        cdef bint known = True, empty = False
        cdef int64_t at = vector(m, t, where, 8, 8, &n, field)
        count[0] = -1
        if at == 0:
            return None
        if n > MAX_RANK:
            fail(m, at, field, f"rank {n}; the limit is {MAX_RANK}")
        dims = PyTuple_New(n)
        for i in range(n):
            d = <int64_t> load64(m, at + 8 * i)
            if d >= 0:
                if d > MAX_ELEMENTS // total:
                    fail(m, at + 8 * i, field, f"dimension {d} makes a tensor of more than {MAX_ELEMENTS} elements")
                empty |= d == 0
                total *= max(d, 1)
                dim = d
            else:
                known = False
                if -1 - d >= self.n_strings:
                    fail(m, at + 8 * i, field, f"there is no string {-1 - d} of {self.n_strings}")
                dim = self.strings[-1 - d]
            Py_INCREF(dim)  # which the tuple takes
            PyTuple_SET_ITEM(dims, i, dim)
        if known:
            count[0] = 0 if empty else total
        return dims

    @cython.final
    cdef int verify(self, int64_t at, int64_t offset, int64_t length, str field) except -1:
        """Compares a blob's bytes with its checksum, which is at `at`."""
        cdef uint64_t expected = load64(&self.meta, at), found
        key = (offset, length, expected)
        if key in self.verified:
            return 0
        self.weights.verify_budget -= length
        if self.weights.verify_budget < 0:
            fail(&self.meta, at, field, "blobs overlap")
        with nogil:
            found = _xxh64(self.weights.base + offset, length, 0)
        if found != expected:
            fail(&self.meta, at, field,
                 f"the checksum of bytes {self.weights.origin + offset} to {self.weights.origin + offset + length} is "
                 f"{found:#018x}, the file says {expected:#018x}")
        self.verified.add(key)
        return 0

    @cython.final
    cdef object read_value(self, int64_t at, int dtype, tuple shape, int64_t count, str field, const uint8_t **raw):
        """The array of the Blob at `at`; `raw` gets its items as they are at run time (not for strings)."""
        cdef Meta *m = &self.meta
        cdef uint64_t offset = load64(m, at), length = load64(m, at + 8)
        cdef int64_t i, expected
        cdef int bits = _bits[dtype], any_bit = 0
        cdef int align = alignment_of(length)
        if offset % align or offset > <uint64_t> self.weights.length:
            fail(m, at, field, f"a blob at {offset} of {self.weights.length} bytes of weights (one of {length} bytes "
                               f"must be at a multiple of {align})")
        if length > <uint64_t> self.weights.length - offset:
            fail(m, at + 8, field, f"a blob of {length} bytes runs past the end of the weights")
        raw[0] = self.weights.base + offset
        if self.checksum:
            self.verify(at + 16, offset, length, field)
        if dtype == STRING:
            return self.string_array(at, offset, length, shape, count, field)
        expected = (count * bits + 7) // 8
        if <uint64_t> expected != length:
            fail(m, at + 8, field, f"{_dtypes[dtype].name.lower()}{list(shape)} takes {expected} bytes, not {length}")
        if bits < 8:
            key = (offset, length, dtype)
            wide = self.widened.get(key)
            if wide is None or len(<bytes> wide) < count:
                self.claim_copy(at, length, count, field)
                wide = widen(raw[0], count, bits, dtype == INT4 or dtype == INT2)
                self.widened[key] = wide
            raw[0] = <const uint8_t *> PyBytes_AS_STRING(wide)
            return self.array(at, shape, _numpy[dtype], raw[0], wide, field)
        if dtype == BOOL:
            for i in range(count):
                any_bit |= raw[0][i]
            if any_bit > 1:
                fail(m, at, field, "a truth value is neither 0 nor 1")
        return self.array(at, shape, _numpy[dtype], raw[0], self.buffer, field)

    @cython.final
    cdef cnp.ndarray array(self, int64_t at, tuple shape, int numpy_type, const uint8_t *data, object owner, str field):
        """A read-only array over bytes that belong to `owner`, which it keeps alive."""
        cdef cnp.npy_intp[MAX_RANK] dims
        cdef int i, rank = <int> len(shape)
        for i in range(rank):
            dims[i] = shape[i]
        try:
            found = cnp.PyArray_SimpleNewFromData(rank, dims, numpy_type, <void *> data)
        except ValueError as error:  # an old NumPy's limit on the rank
            fail(&self.meta, at, field, f"NumPy cannot hold an array of shape {shape}: {error}")
        cnp.set_array_base(found, owner)
        cnp.PyArray_CLEARFLAGS(found, cnp.NPY_ARRAY_WRITEABLE)
        return found

    @cython.final
    cdef int claim_copy(self, int64_t at, int64_t length, int64_t size, str field) except -1:
        self.weights.widen_budget -= length
        if self.weights.widen_budget < 0:
            fail(&self.meta, at, field, "blobs overlap")
        self.copied += size
        return 0

    @cython.final
    cdef object string_array(self, int64_t at, uint64_t offset, uint64_t length, tuple shape, int64_t count, str field):
        """A string tensor: count + 1 ends (uint64, the first 0, never falling), then the UTF-8 bytes."""
        cdef Meta *m = &self.meta
        cdef int64_t i
        cdef uint64_t begin = 0, end, room
        cdef const uint8_t *ends = self.weights.base + offset
        if <uint64_t> count >= length // 8:
            fail(m, at + 8, field, f"{count} strings do not fit into {length} bytes")
        key = (offset, length, STRING)
        flat = self.widened.get(key)
        if flat is None:
            self.claim_copy(at, length, length, field)
            room = length - 8 * (<uint64_t> count + 1)
            memcpy(&end, ends, 8)
            if end != 0:
                fail(m, at, field, "the first string does not start at 0")
            flat = [None] * count
            for i in range(count):
                memcpy(&end, ends + 8 * (i + 1), 8)
                if end < begin or end > room:
                    fail(m, at, field, f"string {i} ends at {end}, outside {begin} to {room}")
                try:
                    flat[i] = PyUnicode_DecodeUTF8(<const char *> (ends + 8 * (count + 1) + begin), end - begin, "strict")
                except UnicodeDecodeError as error:
                    fail(m, at, field, f"string {i} is no valid UTF-8 ({error.reason})")
                begin = end
            if begin != room:
                fail(m, at + 8, field, f"{room - begin} bytes follow the last string")
            self.widened[key] = flat
        if len(flat) != count:
            fail(m, at, field, f"{len(flat)} strings, where the shape asks for {count}")
        found = np.empty(count, object)
        found[:] = flat
        found = found.reshape(shape)
        found.flags.writeable = False
        return found

    @cython.final
    cdef object read_array(self, Table *t, str field, int *dtype, int64_t *count, const uint8_t **raw):
        """The value of an Array table, and what it consists of."""
        dtype[0] = get8(&self.meta, t, ARRAY_AT_DTYPE, field, FLOAT)
        shape = self.read_shape(t, ARRAY_AT_SHAPE, field, count)
        if shape is None:
            shape, count[0] = (), 1
        cdef int64_t at = slot(&self.meta, t, ARRAY_AT_DATA, 24, field)
        if at == 0 or count[0] < 0 or _numpy[dtype[0]] < 0:
            fail(&self.meta, t.at, field, f"an array of element type {dtype[0]} and shape {shape} cannot be")
        return self.read_value(at, dtype[0], shape, count[0], field, raw)

    @cython.final
    cdef object read_quantization(self, Table *t, int dtype, tuple shape):
        cdef Meta *m = &self.meta
        cdef Table item
        cdef const uint8_t *raw
        cdef int kind, size
        cdef int64_t i, n, count, low, high, value
        cdef float real
        cdef bint is_signed
        cdef int scheme = get8(m, t, QUANTIZATION_AT_SCHEME, "Quantization.scheme")
        cdef int bits = get8(m, t, QUANTIZATION_AT_BITS, "Quantization.bits")
        cdef int32_t axis = <int32_t> get32(m, t, QUANTIZATION_AT_AXIS, "Quantization.axis")
        cdef int64_t group = get32(m, t, QUANTIZATION_AT_GROUP, "Quantization.group")
        if scheme > SCHEME_GROUPED:
            fail(m, t.at, "Quantization.scheme", f"there is no scheme {scheme}")
        if bits < 1 or bits > 32 or (_dtypes[dtype] in _integers and bits > _bits[dtype]):
            fail(m, t.at, "Quantization.bits", f"{bits} bits in an element of type {_dtypes[dtype].name}")
        if scheme != SCHEME_PER_TENSOR and (axis < 0 or (shape is not None and axis >= len(shape))):
            fail(m, t.at, "Quantization.axis", f"axis {axis} is outside a tensor of shape {shape}")
        if scheme == SCHEME_GROUPED and group < 1:
            fail(m, t.at, "Quantization.group", "groups of no item")

        if not child(m, t, QUANTIZATION_AT_SCALE, "Quantization.scale", &item):
            fail(m, t.at, "Quantization.scale", "is missing")
        scale = self.read_array(&item, "Quantization.scale", &kind, &count, &raw)
        if kind != FLOAT:
            fail(m, item.at, "Quantization.scale", "scales must be float32")
        for i in range(count):
            memcpy(&real, raw + 4 * i, 4)
            if not (isfinite(real) and real > 0):
                fail(m, item.at, "Quantization.scale", f"scale {i} is {real}, not finite and above 0")
        n = scale_count(scheme, axis, group, shape)
        if n >= 0 and n != count:
            fail(m, item.at, "Quantization.scale", f"{count} scales, where a tensor of shape {shape} needs {n}")

        zero_point = None
        if child(m, t, QUANTIZATION_AT_ZERO_POINT, "Quantization.zero_point", &item):
            zero_point = self.read_array(&item, "Quantization.zero_point", &kind, &count, &raw)
            if _dtypes[kind] not in _integers or zero_point.shape != scale.shape:
                fail(m, item.at, "Quantization.zero_point", "zero points must be integers of the scales' shape")
            is_signed = _dtypes[dtype if _dtypes[dtype] in _integers else kind] in _signed
            low = -((<int64_t> 1) << (bits - 1)) if is_signed else 0
            high = low + ((<int64_t> 1) << bits) - 1
            size = zero_point.itemsize
            for i in range(count):
                value = load_integer(raw, i, size, _dtypes[kind] in _signed)
                if value < low or value > high:
                    fail(m, item.at, "Quantization.zero_point", f"zero point {i} is {value}, outside {low} to {high}")

        cdef int64_t at = slot(m, t, QUANTIZATION_AT_RANGE, 16, "Quantization.range")
        bounds = None
        if at:
            bounds = (load_double(m, at), load_double(m, at + 8))
            if not (isfinite(<double> bounds[0]) and isfinite(<double> bounds[1]) and bounds[0] <= bounds[1]):
                fail(m, at, "Quantization.range", f"{bounds} is no range")
        return Quantization(_schemes[scheme], bits, scale, zero_point, axis, group, bounds)

    @cython.final
    cdef object read_sparsity(self, Table *t, tuple shape):
        """The Sparsity of a constant, and the shape of what its data holds."""
        cdef Meta *m = &self.meta
        cdef Table item
        cdef const uint8_t *raw
        cdef int dtype, kind = get8(m, t, SPARSITY_AT_KIND, "Sparsity.kind")
        cdef int64_t i, n, count, previous, top, place = 0, kept = 0, limit
        cdef int64_t at = vector(m, t, SPARSITY_AT_BLOCK, 4, 4, &n, "Sparsity.block")
        if n != 2 or len(shape) == 0:
            fail(m, t.at, "Sparsity.block", f"{n} numbers, where 2 are needed, in a tensor of shape {shape}")
        cdef int64_t first = load32(m, at), second = load32(m, at + 4)
        block, rows, columns = (first, second), shape[0], product(shape[1:])
        if not (1 <= first <= MAX_BLOCK and 1 <= second <= MAX_BLOCK):
            fail(m, at, "Sparsity.block", f"{block} must be numbers from 1 to {MAX_BLOCK}")
        if not child(m, t, SPARSITY_AT_INDICES, "Sparsity.indices", &item):
            fail(m, t.at, "Sparsity.indices", "is missing")
        indices = self.read_array(&item, "Sparsity.indices", &dtype, &count, &raw)
        if dtype != UINT2 and dtype != UINT4 and dtype != UINT8:
            fail(m, item.at, "Sparsity.indices", f"must be uint2, uint4 or uint8, not {_dtypes[dtype].name.lower()}")
        top = (1 << _bits[dtype]) - 1
        if kind == SPARSE_KIND_NM:
            if first > second:
                fail(m, at, "Sparsity.block", f"{first} of {second}")
            stored = (rows, (columns + second - 1) // second * first)
            if indices.shape != stored:
                fail(m, item.at, "Sparsity.indices", f"must have shape {list(stored)}, not {list(indices.shape)}")
            previous = -1
            for i in range(count):
                if i % first == 0:
                    previous = -1
                if raw[i] <= previous or raw[i] >= second:
                    fail(m, item.at, "Sparsity.indices", f"index {i} is {raw[i]}, after {previous} and of {second}")
                previous = raw[i]
        elif kind == SPARSE_KIND_BLOCK:
            if indices.ndim != 1:
                fail(m, item.at, "Sparsity.indices", "must be a vector")
            limit = product(((rows + first - 1) // first, (columns + second - 1) // second))
            for i in range(count):
                place += raw[i]
                if raw[i] != top:
                    place += 1
                    kept += 1
                if place > limit:
                    fail(m, item.at, "Sparsity.indices", f"index {i} leads past the last of {limit} blocks")
            stored = (kept, first, second)
        else:
            fail(m, t.at, "Sparsity.kind", f"there is no kind {kind}")
        # Its zeros cost nothing in the file, but memory where a kernel wants them.
        if product(shape) // MAX_EXPANSION > product(stored) + count:
            fail(m, t.at, "Sparsity", f"{product(stored)} items stand for a tensor of shape {shape}; at least one in "
                                      f"{MAX_EXPANSION} must be there")
        return Sparsity(_sparse_kinds[kind], block, indices, _dtypes[dtype]), stored

    @cython.final
    cdef int check_overhang(self, int64_t at, data, sparsity, tuple shape) except -1:
        """What sticks out of a sparse constant must be zero: kernels read no such item."""
        from evort.sparse import overhang

        if overhang(data, sparsity, shape):
            fail(&self.meta, at, "Tensor.data", f"an item outside of the tensor, {list(shape)}, is not zero")
        return 0


cdef int64_t scale_count(int scheme, int64_t axis, int64_t group, tuple shape) except -2:
    """How many scales a tensor has; -1 where that depends on a dimension that is not known."""
    if scheme == SCHEME_PER_TENSOR:
        return 1
    if shape is None:
        return -1
    if scheme == SCHEME_PER_AXIS:
        return shape[axis] if isinstance(shape[axis], int) else -1
    if not all(isinstance(d, int) for d in shape):
        return -1
    return product((*shape[:axis], (shape[axis] + group - 1) // group, *shape[axis + 1:]))
