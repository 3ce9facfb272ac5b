"""The properties of attention that hold for any numbers, by name; each is a check of its own.

Those that hold in every bit see a fault of any size, at any length and in any dtype; the others take their tolerance
from the case's noise. A property runs on the cases that the backend takes.
"""

from __future__ import annotations

from attnbench.conformance.properties import (
    changed_masks,
    changed_scores,
    exact,
    gradients,
    modes,
    nonfinite,
    placement,
    second_gradients,
    some_gradients,
    symmetries,
    transforms,
    unusual_sizes,
)
from attnbench.conformance.properties.property import Property

_ALL: tuple[Property, ...] = (
    exact.mask_probe,
    exact.masked_keys_do_not_leak,
    exact.unseen_keys_get_no_gradient,
    gradients.gradient_identities,
    gradients.inner_products_agree,
    exact.one_hot_retrieval,
    exact.scale_moves_between_q_and_scale,
    exact.powers_of_two_pass_through,
    exact.signs_cancel,
    symmetries.strides_make_no_difference,
    symmetries.grouped_heads_equal_repeated_keys,
    symmetries.decode_equals_the_last_row,
    symmetries.halves_merge_by_lse,
    symmetries.large_inputs_stay_finite,
    symmetries.a_batch_row_alone_is_the_same,
    symmetries.keys_in_another_order_give_the_same,
    symmetries.heads_in_another_order_give_the_same,
    changed_masks.changed_masks_are_read,
    changed_scores.changed_scales_are_read,
    changed_scores.changed_scores_are_read,
    some_gradients.some_gradients_are_those_of_all,
    unusual_sizes.unusual_sizes_are_right,
    unusual_sizes.mixed_dtypes_are_refused_or_right,
    placement.memory_makes_no_difference,
    placement.memory_of_a_bias_makes_no_difference,
    placement.offsets_past_2_to_the_31_are_reached,
    modes.inference_makes_no_difference,
    modes.autocast_computes_in_its_dtype,
    second_gradients.second_gradients_are_exact,
    transforms.vmap_over_batch_rows_gives_the_same,
    transforms.compiled_code_takes_any_length,
    nonfinite.nan_and_infinity_stay_where_they_belong,
)
PROPERTIES = {each.name: each for each in _ALL}
