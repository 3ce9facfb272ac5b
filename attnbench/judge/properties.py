"""What must hold whatever the numbers? Properties of attention that need no exact answer, or none with a tolerance.

Those that hold in every bit see a fault of any size, at any length and in any dtype; those with a tolerance take
it from the case's noise. Each is a named check, run where the backend's capabilities allow its cases.
"""

from __future__ import annotations

from attnbench.judge import exact_properties, gradient_identities, symmetries
from attnbench.judge.property import Property

_ALL: tuple[Property, ...] = (
    exact_properties.mask_probe,
    exact_properties.masked_keys_do_not_leak,
    exact_properties.unseen_keys_get_no_gradient,
    gradient_identities.gradient_identities,
    gradient_identities.inner_products_agree,
    exact_properties.one_hot_retrieval,
    exact_properties.scale_moves_between_q_and_scale,
    exact_properties.powers_of_two_pass_through,
    exact_properties.signs_cancel,
    symmetries.strides_make_no_difference,
    symmetries.grouped_heads_equal_repeated_keys,
    symmetries.decode_equals_the_last_row,
    symmetries.halves_merge_by_lse,
    symmetries.large_inputs_stay_finite,
    symmetries.a_batch_row_alone_is_the_same,
    symmetries.keys_in_another_order_give_the_same,
    symmetries.heads_in_another_order_give_the_same,
)
PROPERTIES = {each.name: each for each in _ALL}
