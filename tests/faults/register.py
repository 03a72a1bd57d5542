"""Which tests prove which row of docs/faults.md: the register behind `make faults`.

The page names the same tests; tests/faults/test_register.py holds the two against each other.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A row: its tests, and those in which the protection is taken away and the row's assertion fails."""

    title: str
    tests: tuple[str, ...]
    unprotected: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.tests, *self.unprotected)))


MUST_BE_UNPROTECTED = (2, 4, 5, 10, 12, 13, 19, 27, 37, 44)
"""Rows of which it must be shown that their test fails without the protection."""

_WRITERS = "tests/faults/test_writers.py::test_fault_"
_MATRIX = "tests/faults/test_crash_matrix.py::test_a_run_killed_there_and_run_again_leaves_what_an_undisturbed_one_leaves"
_KILL = "tests/faults/test_kill.py::test_fault_03_a_killed_dynamix_run_leaves_what_an_undisturbed_one_leaves"
_KILLED_INGEST = (
    "tests/jobs/test_killed_ingest.py::test_fault_03_the_quarantine_of_a_run_that_died_condemns_no_event"
)
_REGISTRY = "tests/faults/test_registry.py::test_fault_"
_PROTECTIONS = "tests/faults/test_protections.py::test_fault_"
_STATISTICS = "tests/faults/test_statistics.py::test_fault_"
_MEMORY = "tests/models/test_memory.py::test_fault_38_"
_BAD = "tests/features/test_bad_input.py::test_fault_"
_EVENTS = "tests/features/test_events.py::test_"
_EACH_REASON = f"{_EVENTS}each_bad_row_has_its_reason"
_REBUILD = "tests/jobs/test_rebuild.py::test_"
_INGEST = "tests/jobs/test_ingest.py::test_"
_PLANTED = (
    "tests/features/test_properties.py::test_each_planted_bug_is_found_by_the_comparison_with_the_oracle"
)

FAULTS: dict[int, Fault] = {
    1: Fault(
        "an older date after a newer one", (f"{_WRITERS}01_an_older_day_written_after_a_newer_one_is_there",)
    ),
    2: Fault(
        "retry after the commit",
        (f"{_INGEST}rows_balance_and_a_rerun_has_the_same_content", _MATRIX),
        (f"{_WRITERS}02_a_commit_whose_answer_was_lost_is_made_once_more_in_its_own_place",),
    ),
    3: Fault(
        "killed while files are written",
        (f"{_WRITERS}03_killed_while_files_are_written", _KILL, _MATRIX, _KILLED_INGEST),
    ),
    4: Fault(
        "killed between features, segments and masks",
        (
            "tests/e2e/test_cycle.py::test_a_killed_run_goes_on_from_the_last_finished_step",
            f"{_STATISTICS}04_masks_of_other_segments_are_refused_by_training",
            _MATRIX,
            f"{_STATISTICS}04_a_mask_that_a_dead_training_retired_is_asked_again_and_one_of_a_finished_training_is_not",
        ),
        (
            "tests/faults/test_crash_matrix.py::test_fault_04_without_the_log_a_killed_step_would_be_taken_for_done",
        ),
    ),
    5: Fault(
        "source or frame empty",
        (f"{_INGEST}refusals_write_nothing",),
        (f"{_WRITERS}05_nothing_replaces_no_range",),
    ),
    6: Fault("two writers, one range", (f"{_WRITERS}06_of_two_writers_of_one_day_the_second_tries_again",)),
    7: Fault(
        "two writers, different ranges", (f"{_WRITERS}07_two_writers_of_different_days_both_succeed_at_once",)
    ),
    8: Fault("two first writers", (f"{_WRITERS}08_two_first_writers_make_one_table",)),
    9: Fault(
        "the same event delivered twice",
        (
            f"{_BAD}9_an_event_delivered_twice_stays_once_with_its_earliest_ingest",
            f"{_EVENTS}copies_of_an_event",
            f"{_EVENTS}derived_event_id_is_the_hash_of_the_row_without_its_ingest",
        ),
    ),
    10: Fault(
        "one id, different payloads",
        (f"{_BAD}10_of_one_id_with_two_payloads_the_earliest_ingest_stays", f"{_EVENTS}copies_of_an_event"),
        (f"{_PROTECTIONS}10_without_the_comparison_of_payloads_a_contradiction_passes_for_a_copy",),
    ),
    11: Fault(
        "duplicate keys in what is written",
        (
            f"{_BAD}11_a_doubled_key_never_reaches_a_table",
            "tests/features/test_quality.py::test_violations_are_counted_in_the_frame",
        ),
    ),
    12: Fault(
        "late event bridges two sessions",
        (
            "tests/jobs/test_increment.py::test_day_by_day_equals_one_build",
            f"{_BAD}12_a_late_event_that_bridges_two_sessions_leaves_one",
            f"{_REBUILD}late_rows_and_chunks_of_days_end_with_the_tables_of_one_build",
        ),
        (f"{_PROTECTIONS}12_without_the_stored_neighbours_of_a_late_event_both_sessions_stay",),
    ),
    13: Fault(
        "event exactly at the gap",
        (
            f"{_BAD}13_an_event_exactly_at_the_gap_is_of_the_session",
            "tests/features/test_sessions.py::test_edges_of_a_session",
        ),
        (f"{_PROTECTIONS}13_with_a_gap_that_opens_at_its_own_length_there_are_two_sessions", _PLANTED),
    ),
    14: Fault(
        "missing, unreadable or impossible time",
        (
            f"{_BAD}14_a_time_that_is_none_or_of_another_unit",
            _EACH_REASON,
            f"{_EVENTS}a_number_as_time_needs_a_unit",
        ),
    ),
    15: Fault(
        "user or surface missing", (f"{_BAD}15_a_missing_user_or_surface_makes_no_group", _EACH_REASON)
    ),
    16: Fault("clock skew", (f"{_BAD}16_an_event_more_than_15_minutes_after_its_ingest", _EACH_REASON)),
    17: Fault(
        "dwell negative, NaN, infinite, absurd",
        (
            f"{_BAD}17_a_dwell_that_is_none_is_missing_and_an_absurd_one_capped",
            f"{_EVENTS}bad_dwell_keeps_its_event",
            "tests/features/test_dwell.py::test_a_dwell_above_the_cap_is_capped_and_one_at_it_is_not",
            f"{_WRITERS}17_a_row_that_breaks_a_check_is_named_and_nothing_is_written",
        ),
    ),
    18: Fault(
        "conversion without impression, early, twice, late",
        (
            f"{_BAD}18_conversions_without_before_twice_and_after_the_window",
            "tests/features/test_conversions.py::test_odd_conversions_are_counted_once_each_and_the_latest_impression_wins",
        ),
    ),
    19: Fault(
        "daylight saving, other session zone",
        (
            f"{_BAD}19_another_session_zone_and_daylight_saving_change_no_row",
            f"{_PROTECTIONS}19_the_segment_of_a_row_is_that_of_midnight_utc",
            "tests/jobs/test_session.py::test_the_local_session_has_the_promised_settings",
        ),
        (f"{_PROTECTIONS}19_with_days_of_the_sessions_zone_an_early_event_is_of_the_day_before",),
    ),
    20: Fault(
        "one user with a quarter of the events",
        (
            "tests/features/test_engine.py::test_both_tables_equal_those_of_the_separate_paths",
            f"{_REBUILD}fault_20_one_user_with_a_third_of_the_events_is_named",
        ),
    ),
    21: Fault(
        "endless session",
        (
            f"{_BAD}21_a_session_without_end_is_split_and_flagged",
            "tests/features/test_sessions.py::test_gap_before_and_cut_sessions",
        ),
    ),
    22: Fault(
        "unknown stream",
        (
            f"{_BAD}22_an_unknown_stream_is_new_or_goes_to_unknown",
            f"{_EVENTS}a_closed_contract_moves_new_streams_to_unknown",
        ),
    ),
    23: Fault(
        "new column upstream",
        (
            f"{_BAD}23_a_new_column_is_noted_and_not_read",
            f"{_REBUILD}fault_23_a_new_column_is_noted_and_one_too_many_is_refused",
        ),
    ),
    24: Fault(
        "column gone, or of another type",
        (
            f"{_BAD}24_a_column_gone_or_of_another_type_is_named_with_both_types",
            f"{_EVENTS}all_violations_are_named_with_both_types",
        ),
    ),
    25: Fault("malformed JSON in a payload", (f"{_BAD}25_a_payload_of_torn_json", _EACH_REASON)),
    26: Fault(
        "Parquet file damaged or lost behind the log",
        (
            f"{_WRITERS}26_a_file_behind_the_log_that_is_gone_or_damaged_is_named_with_its_table",
            f"{_EVENTS}sources_that_cannot_be_read_are_input_errors",
            "tests/models/test_dataset.py::test_missing_column_and_lost_file_are_said",
        ),
    ),
    27: Fault(
        "pinned version vacuumed",
        (
            "tests/features/test_tables.py::test_files_are_those_of_the_pinned_version_and_partition_only",
            "tests/jobs/test_retention.py::test_a_pin_that_the_log_has_lost_is_said_and_nothing_is_removed",
        ),
        (f"{_WRITERS}27_a_version_that_was_vacuumed_is_refused_before_anything_reads_it",),
    ),
    28: Fault(
        "VACUUM or OPTIMIZE during a job",
        (
            f"{_WRITERS}28_readers_of_a_version_keep_it",
            "tests/features/test_tables.py::test_compaction_makes_a_version_but_no_change_of_rows",
        ),
        (
            "tests/jobs/test_retention.py::test_fault_28_a_retention_shorter_than_deltas_is_refused_and_pins_lengthen_it",
        ),
    ),
    29: Fault(
        "disk full, worker lost",
        (
            f"{_WRITERS}29_a_full_disk_is_said_the_table_stays_and_the_rerun_works",
            f"{_WRITERS}29_a_killed_worker_ends_the_write_and_the_rerun_works",
            "tests/jobs/test_doctor.py::test_a_full_disk_fails",
        ),
    ),
    30: Fault(
        "another config over an existing table",
        (
            f"{_INGEST}another_definition_needs_rebuild",
            "tests/features/test_tables.py::test_a_table_of_another_contract_is_refused_with_the_way_out",
        ),
    ),
    31: Fault(
        "an expectation errors instead of failing",
        ("tests/features/test_quality.py::test_an_expectation_that_errors_is_a_failure",),
    ),
    32: Fault(
        "quality suite on an empty frame",
        ("tests/features/test_quality.py::test_every_violated_rule_fails_alone",),
    ),
    33: Fault(
        "one class, no conversion, constant dwell",
        (
            f"{_STATISTICS}33_a_segment_without_conversions_or_spread_is_undecided_and_keeps_everything",
            "tests/models/test_train.py::test_a_label_with_one_class_is_refused",
            "tests/e2e/test_no_conversion.py::test_without_a_conversion_features_and_segments_are_written_and_masks_are_refused",
        ),
    ),
    34: Fault(
        "segments too few, too small, all in one",
        (
            "tests/segmentation/test_guards.py::test_too_few_long_users_leave_one_segment_as_not_measurable",
            "tests/segmentation/test_guards.py::test_each_guard_refuses_and_is_named",
            "tests/segmentation/test_segmenters.py::test_no_event_in_the_input_window_is_said",
        ),
    ),
    35: Fault(
        "everything would be dropped",
        (
            "tests/segmentation/test_masks.py::test_the_most_relevant_stream_of_each_segment_stays_even_if_all_are_null",
        ),
    ),
    36: Fault(
        "tracking store down",
        (
            f"{_REGISTRY}36_a_tracking_server_that_is_down_or_fails_is_exit_5",
            f"{_REGISTRY}36_a_version_that_was_not_finished_carries_no_alias",
            "tests/faults/test_crash_matrix.py::test_fault_36_a_training_that_cannot_be_registered_stays_on_disk",
        ),
    ),
    37: Fault(
        "two trainings race for an alias",
        (),
        (
            f"{_REGISTRY}37_an_alias_that_moved_since_the_comparison_stays_where_it_is",
            f"{_REGISTRY}37_of_two_trainings_that_race_for_the_alias_one_wins",
        ),
    ),
    38: Fault(
        "no GPU, or out of memory",
        (
            "tests/models/test_train.py::test_cuda_that_is_absent_is_an_environment_trouble",
            f"{_MEMORY}a_batch_that_does_not_fit_goes_through_in_pieces_to_the_same_weights",
            f"{_MEMORY}the_same_shortage_gives_the_same_bits",
            f"{_MEMORY}where_even_few_rows_do_not_fit_the_way_out_is_named",
        ),
        (f"{_MEMORY}without_the_weight_of_the_whole_batch_the_pieces_would_train_another_model",),
    ),
    39: Fault("loss not finite", ("tests/models/test_train.py::test_a_loss_that_is_not_finite_stops",)),
    40: Fault(
        "model trained elsewhere, loaded on a CPU",
        ("tests/models/test_ranker.py::test_exported_program_serves_one_row_and_empty_histories",),
    ),
    41: Fault(
        "other column order in scoring",
        (
            "tests/models/test_dataset.py::test_fault_41_columns_are_taken_by_name_in_any_order",
            "tests/models/test_dataset.py::test_missing_column_and_lost_file_are_said",
        ),
    ),
    42: Fault(
        "jars, Java or version pair wrong",
        (
            "tests/jobs/test_session.py::test_an_unresolvable_artifact_is_named_and_leaves_no_cache",
            "tests/jobs/test_doctor.py::test_missing_jars_are_named_as_artifacts",
            "tests/jobs/test_session.py::test_no_java_is_an_environment_error_with_a_fix",
        ),
    ),
    43: Fault(
        "odd ids",
        (
            f"{_BAD}43_odd_ids_stay_text_and_long_ones_go",
            _EACH_REASON,
            "tests/features/test_sources.py::test_hashed_ids_keep_columns_apart_and_nulls_from_empty_text",
        ),
    ),
    44: Fault(
        "ties in time",
        (
            f"{_BAD}44_ties_in_time_have_one_order_and_double_no_row",
            "tests/features/test_history.py::test_equals_the_plain_python_oracle",
            "tests/features/test_conversions.py::test_random_rows_equal_the_oracle",
        ),
        (f"{_PROTECTIONS}44_without_the_total_order_the_order_of_delivery_decides",),
    ),
}
