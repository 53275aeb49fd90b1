"""Triton kernels for a decoding step of few rows: six launches a block instead of some twenty.

A step of one to a few dozen rows reads every weight once and does little with it, so its time is the weights' bytes plus
what each launch costs. Norms, gates and residuals are therefore parts of the products, and attention never reads past
the context at hand, which it learns on the device: one captured graph serves every context length.

`executor.resident.triton_operations` launches them; `executor.resident.operations.TorchOperations` is the specification,
and tests hold these kernels to it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def vector_linear(
    x, weight, bias, norm, residual, out, num_inputs, num_outputs, eps,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, IS_EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, GATES: tl.constexpr,
    STARTS_EARLY: tl.constexpr,
):  # fmt: skip
    """One row: every weight meets one number, so sums are kept a lane each and added up once."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offsets = tl.arange(0, BLOCK_K)
    is_column = column < num_outputs
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    gated = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    weight_at = weight + column[:, None].to(tl.int64) * num_inputs + offsets[None, :]
    up_at = weight_at + num_outputs.to(tl.int64) * num_inputs
    # Weights are always a block ahead; the first one does not wait for the kernel that makes x.
    is_first = is_column[:, None] & (offsets < num_inputs)[None, :]
    next_weights = tl.load(weight_at, mask=is_first, other=0.0, eviction_policy="evict_first")
    if GATES:
        next_ups = tl.load(up_at, mask=is_first, other=0.0, eviction_policy="evict_first")
    if STARTS_EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for first in range(0, num_inputs, BLOCK_K):
        is_input = offsets < num_inputs - first
        weights = next_weights
        if GATES:
            ups = next_ups
        next_at = first + BLOCK_K
        if IS_EVEN:
            is_next = is_column[:, None] & (next_at < num_inputs)
        else:
            is_next = is_column[:, None] & (offsets < num_inputs - next_at)[None, :]
        next_weights = tl.load(weight_at + next_at, mask=is_next, other=0.0, eviction_policy="evict_first")
        if GATES:
            next_ups = tl.load(up_at + next_at, mask=is_next, other=0.0, eviction_policy="evict_first")
        values = tl.load(x + first + offsets, mask=is_input, other=0.0).to(tl.float32)
        if HAS_NORM:
            squares += values * values
            values *= tl.load(norm + first + offsets, mask=is_input, other=0.0).to(tl.float32)
        total += weights.to(tl.float32) * values[None, :]
        if GATES:
            gated += ups.to(tl.float32) * values[None, :]
    result = tl.sum(total, axis=1)
    if HAS_NORM:
        shrink = tl.rsqrt(tl.sum(squares, axis=0) / num_inputs + eps)
        result *= shrink
    if HAS_BIAS:
        result += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)
    if GATES:
        up = tl.sum(gated, axis=1)
        if HAS_NORM:
            up *= shrink
        result = result * tl.sigmoid(result) * up
    if HAS_RESIDUAL:
        result += tl.load(residual + column, mask=is_column, other=0.0).to(tl.float32)
    tl.store(out + column, result.to(out.dtype.element_ty), mask=is_column)


@triton.jit(do_not_specialize=["num_rows"])
def matrix_linear(
    x, weight, bias, norm, residual, out, num_rows, num_inputs, num_outputs, eps,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, IS_EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, GATES: tl.constexpr,
    PRECISION: tl.constexpr, STARTS_EARLY: tl.constexpr,
):  # fmt: skip
    """Some rows: the weights are the left factor of the matrix units' product, so each warp reads only its own."""
    row = tl.arange(0, ROWS)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offsets = tl.arange(0, BLOCK_K)
    is_row, is_column = row < num_rows, column < num_outputs
    total = tl.zeros((BLOCK_N, ROWS), tl.float32)
    gated = tl.zeros((BLOCK_N, ROWS), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    x_at = x + row[None, :] * num_inputs + offsets[:, None]
    weight_at = weight + column[:, None].to(tl.int64) * num_inputs + offsets[None, :]
    up_at = weight_at + num_outputs.to(tl.int64) * num_inputs
    if STARTS_EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    for first in range(0, num_inputs, BLOCK_K):
        is_input = offsets < num_inputs - first
        if IS_EVEN:
            are_values, are_weights = is_row[None, :], is_column[:, None]
        else:
            are_values, are_weights = is_row[None, :] & is_input[:, None], is_column[:, None] & is_input[None, :]
        weights = tl.load(weight_at + first, mask=are_weights, other=0.0)
        values = tl.load(x_at + first, mask=are_values, other=0.0)
        if HAS_NORM:
            exact = values.to(tl.float32)
            squares += tl.sum(exact * exact, axis=0)
            scale = tl.load(norm + first + offsets, mask=is_input, other=0.0).to(tl.float32)
            values = (exact * scale[:, None]).to(weights.dtype)
        total = tl.dot(weights, values, total, input_precision=PRECISION)
        if GATES:
            ups = tl.load(up_at + first, mask=are_weights, other=0.0)
            gated = tl.dot(ups, values, gated, input_precision=PRECISION)
    if HAS_NORM:
        shrink = tl.rsqrt(squares / num_inputs + eps)[None, :]
        total *= shrink
        gated *= shrink
    if HAS_BIAS:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[:, None]
    if GATES:
        total = total * tl.sigmoid(total) * gated
    at = row[None, :] * num_outputs + column[:, None]
    is_given = is_row[None, :] & is_column[:, None]
    if HAS_RESIDUAL:
        total += tl.load(residual + at, mask=is_given, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=is_given)


@triton.jit
def rotate_and_store(
    states, positions, slots, cosines, sines, query_norm, key_norm, queries, keys, values, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr, HAS_NORM: tl.constexpr,
    STARTS_EARLY: tl.constexpr,
):  # fmt: skip
    if STARTS_EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row, head = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, HALF)
    at = states + (row * (NUM_HEADS + 2 * NUM_KV_HEADS) + head) * 2 * HALF + lane
    left, right = tl.load(at).to(tl.float32), tl.load(at + HALF).to(tl.float32)
    slot = tl.load(slots + row).to(tl.int64)
    if head < NUM_HEADS + NUM_KV_HEADS:
        if HAS_NORM:
            mean = (tl.sum(left * left, axis=0) + tl.sum(right * right, axis=0)) / (2 * HALF)
            shrink = tl.rsqrt(mean + eps)
            is_query = head < NUM_HEADS
            scale = tl.where(
                is_query, tl.load(query_norm + lane).to(tl.float32), tl.load(key_norm + lane).to(tl.float32)
            )
            other = tl.where(
                is_query,
                tl.load(query_norm + HALF + lane).to(tl.float32),
                tl.load(key_norm + HALF + lane).to(tl.float32),
            )
            left, right = left * shrink * scale, right * shrink * other
        turn = tl.load(positions + row).to(tl.int64) * HALF + lane
        cosine, sine = tl.load(cosines + turn), tl.load(sines + turn)
        left, right = left * cosine - right * sine, right * cosine + left * sine
    if head < NUM_HEADS:
        to = queries + (row * NUM_HEADS + head) * 2 * HALF + lane
        tl.store(to, left.to(queries.dtype.element_ty))
        tl.store(to + HALF, right.to(queries.dtype.element_ty))
    elif head < NUM_HEADS + NUM_KV_HEADS:
        to = keys + (slot * NUM_KV_HEADS + head - NUM_HEADS) * 2 * HALF + lane
        tl.store(to, left.to(keys.dtype.element_ty))
        tl.store(to + HALF, right.to(keys.dtype.element_ty))
    else:
        to = values + (slot * NUM_KV_HEADS + head - NUM_HEADS - NUM_KV_HEADS) * 2 * HALF + lane
        tl.store(to, left.to(values.dtype.element_ty))
        tl.store(to + HALF, right.to(values.dtype.element_ty))


@triton.jit
def _absorb(query, keys, values, is_seen, peak, mass, mixed, scale, PRECISION: tl.constexpr):
    """One block of slots into the running softmax: (M, D), (S, D), (S, D), (M, S)."""
    scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale
    scores = tl.where(is_seen, scores, float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, axis=1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet
    weights = tl.exp(scores - base[:, None])
    fade = tl.exp(peak - base)
    mass = mass * fade + tl.sum(weights, axis=1)
    mixed = mixed * fade[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    return higher, mass, mixed


@triton.jit(do_not_specialize=["num_rows", "tail_columns", "tail_width"])
def attend(
    queries, keys, values, limits, mixed_out, peak_out, mass_out, arrivals, out, num_rows, scale, num_tail_slots,
    tail_columns, tail_width, GROUPS: tl.constexpr, NUM_KV_HEADS: tl.constexpr,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
    STARTS_EARLY: tl.constexpr,
):  # fmt: skip
    if STARTS_EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    head, split = tl.program_id(0), tl.program_id(1)
    lane, entry, block = tl.arange(0, DIM), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_S)
    row = entry // GROUPS
    is_row = row < num_rows
    at = ((row * NUM_KV_HEADS + head) * GROUPS + entry % GROUPS) * DIM
    query = tl.load(queries + at[:, None] + lane[None, :], mask=is_row[:, None], other=0.0)
    limit = tl.load(limits + row, mask=is_row, other=0).to(tl.int32)
    longest = tl.max(limit, axis=0)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, DIM), tl.float32)
    # Blocks go to splits in turn, whatever the length: a row's sums are the same at every length of the others.
    for first in range(split * BLOCK_S, longest, SPLITS * BLOCK_S):
        column = first + block
        place = ((num_tail_slots + column).to(tl.int64) * NUM_KV_HEADS + head)[:, None] * DIM + lane[None, :]
        is_held = (column < longest)[:, None]
        key = tl.load(keys + place, mask=is_held, other=0.0)
        value = tl.load(values + place, mask=is_held, other=0.0)
        is_seen = column[None, :] < limit[:, None]
        peak, mass, mixed = _absorb(query, key, value, is_seen, peak, mass, mixed, scale, PRECISION)
    for first in range(split * BLOCK_S, tail_columns, SPLITS * BLOCK_S):
        column = first + block
        place = (column.to(tl.int64) * NUM_KV_HEADS + head)[:, None] * DIM + lane[None, :]
        is_held = (column < tail_columns)[:, None]
        key = tl.load(keys + place, mask=is_held, other=0.0)
        value = tl.load(values + place, mask=is_held, other=0.0)
        is_seen = (column % tail_width)[None, :] == row[:, None]
        is_seen = is_seen & (column < tail_columns)[None, :]
        peak, mass, mixed = _absorb(query, key, value, is_seen, peak, mass, mixed, scale, PRECISION)
    part = (head * SPLITS + split) * BLOCK_M + entry
    tl.store(mixed_out + part[:, None] * DIM + lane[None, :], mixed)
    tl.store(peak_out + part, peak)
    tl.store(mass_out + part, mass)
    # The split that comes last joins all of them, in their order: one launch less, and the sums of any schedule.
    tl.debug_barrier()
    if tl.atomic_add(arrivals + head, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
        tl.store(arrivals + head, 0)  # as the next launch finds it
        parts = head * SPLITS * BLOCK_M + entry
        highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        for other in range(SPLITS):
            highest = tl.maximum(highest, tl.load(peak_out + parts + other * BLOCK_M))
        highest = tl.where(is_row, highest, 0.0)  # every row sees at least itself; what fills up the block sees nothing
        mass = tl.zeros((BLOCK_M,), tl.float32)
        mixed = tl.zeros((BLOCK_M, DIM), tl.float32)
        for other in range(SPLITS):
            part = parts + other * BLOCK_M
            weight = tl.exp(tl.load(peak_out + part) - highest)
            mass += tl.load(mass_out + part) * weight
            mixed += tl.load(mixed_out + part[:, None] * DIM + lane[None, :]) * weight[:, None]
        to = out + at[:, None] + lane[None, :]
        tl.store(to, (mixed / mass[:, None]).to(out.dtype.element_ty), mask=is_row[:, None])
