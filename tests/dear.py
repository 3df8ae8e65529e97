"""Tests that `make test` leaves to `make validate`, since each takes seconds and a sister of it stays.

By file and name, parameters included; measured on two quiet cores (`--durations`). What is dear in kind, whatever it
takes, is marked `slow` where it stands.
"""

DEAR = frozenset(
    {
        "test_alike.py::test_read_together_and_apart_are_the_same[a_running_sum]",
        "test_alike.py::test_read_together_and_apart_are_the_same[two_outcomes_and_vectors]",
        "test_batches.py::test_the_batches_of_a_partition_average_to_the_whole[latent classes]",
        "test_batches.py::test_the_batches_of_a_partition_average_to_the_whole[regressions]",
        "test_capture_recapture.py::test_works_for_300_animals",
        "test_chains_and_counts.py::test_everything_equals_enumeration[named_lag_of_two]",
        "test_chains_and_counts.py::test_everything_equals_enumeration[sums_within_groups]",
        "test_chains_and_counts.py::test_everything_equals_enumeration[two_chains_of_unequal_length]",
        "test_chains_and_counts.py::test_everything_equals_enumeration[two_sums_of_the_same_parts]",
        "test_classes.py::test_a_function_by_classes_is_the_function[abundance]",
        "test_classes.py::test_a_function_by_classes_is_the_function[entropies]",
        "test_classes.py::test_a_function_by_classes_is_the_function[groups]",
        "test_classes.py::test_a_function_by_classes_is_the_function[moved]",
        "test_classes.py::test_equal_histories_are_evaluated_once[loop]",
        "test_classes.py::test_a_function_by_classes_is_the_function[item_responses]",
        "test_dina.py::test_works_for_500_people_and_20_items",
        "test_infer_advi.py::test_families_that_hold_the_target_find_it[low-rank-1]",
        "test_infer_advi.py::test_log_density_is_that_of_what_is_pushed[low-rank-2]",
        "test_infer_advi.py::test_mean_field_finds_the_nearest_independent_gaussians[plain]",
        "test_n_mixture.py::test_the_model_as_the_paper_has_it_agrees_with_the_likelihood_by_hand",
        "test_recall.py::test_an_ascent_is_recalled_with_all_that_it_depends_on",
        "test_scaled.py::test_segments_of_any_number_give_value_and_gradient[19-4-2]",
        "test_scaled.py::test_segments_of_any_number_give_value_and_gradient[26-2-3]",
        "test_streaming.py::test_any_block_gives_the_same_value_gradient_and_curvature[counts-2]",
        "test_streaming.py::test_models_of_independent_rows_go_by_rows[annotators]",
        "test_supports.py::test_a_few_families[sample_shape]",
        "test_unroll.py::test_value_and_all_derivatives_are_those_of_the_whole[correlated]",
        "test_unroll.py::test_value_and_all_derivatives_are_those_of_the_whole[masked]",
        "test_unroll.py::test_value_and_all_derivatives_are_those_of_the_whole[line]",
    }
)
