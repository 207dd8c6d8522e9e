"""Every test runs offline and keeps its model cache to itself."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from uniattn_pl.startup import RARELY

# As the command line does (uniattn_pl.startup): modules are no garbage, and workers look through them again and again.
COLLECTED_AS_USUAL = gc.get_threshold()
gc.set_threshold(*RARELY)

# As in an environment that is active: commands are printed with `python` where that is this interpreter.
os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))

# Tables are as wide as they are, as in a file; xdist tells its workers a terminal's width.
os.environ.pop("COLUMNS", None)

LONG = ("training", "sweeps", "tracking", "faults")
# What `make test-fast` leaves out: folders, files and tests that run whole fits, other processes, compilers or every
# shipped file; and all families but these two, which differ most. A new test is fast until it is named here.
SLOW = (
    "analysis/",
    "api/test_run_fit.py",
    "benchmarks/test_gpu_check.py::test_every_part_runs_in_small",
    "benchmarks/test_gpu_check.py::test_without_a_card_it_says_so_and_what_can_be_done",
    "benchmarks/test_gpu_check.py::test_a_part_that_is_unknown_is_named",
    "benchmarks/test_gpu_check.py::test_what_a_part_started_ends_with_it",
    "calibration/test_alignment_and_rank.py",
    "calibration/test_fitted_heads.py",
    "calibration/test_refinement.py",
    "calibration/test_complete_roles.py",
    "calibration/test_encoder_streams.py",
    "calibration/test_resume.py",
    "calibration/test_sharded.py",
    "calibration/test_spilled_streams.py::test_where_streams_are_changes_no_bit",
    "commands/test_from_a_run.py",
    "config/test_loading.py::test_the_printed_config_loads_to_the_same_config",
    "config/test_shipped_files.py",
    "data/test_loader.py::test_a_lightning_run_continues_with_other_micro_batches",
    "data/test_loader.py::test_a_lightning_run_that_was_stopped_continues_exactly",
    "data/test_loader.py::test_a_restored_loader_continues_with_the_next_batch",
    "data/test_self_text.py::test_a_killed_process_is_gone_on_with_and_gives_the_rows_of_one_that_was_not",
    "data/test_self_text.py::test_fits_train_on_it_and_a_second_one_samples_nothing",
    "data/test_self_text.py::test_of_two_processes_one_samples_and_the_other_waits",
    "data/test_token_cache.py::test_a_second_fit_tokenises_only_without_the_cache",
    "data/test_token_cache.py::test_another_process_finds_the_tokens",
    "docs/",
    "evaluation/test_evaluate.py",
    "evaluation/test_served_evaluation.py",
    "evaluation/test_probes.py::test_retrieval_of_a_real_model_is_seeded",
    "examples/",
    "exporting/",
    "families/test_encoder_decoders.py",
    "families/test_positions.py::test_a_benchmark_of_longer_texts_goes_on_and_says_so",
    "families/test_support.py",
    "families/test_wrappers.py::test_a_fit_on_texts_trains_the_text_model_and_leaves_the_tower",
    "families/test_positions.py::test_an_evaluation_says_all_that_is_too_long_before_it_measures",
    "fuzz/",
    "inference/test_bench.py",
    "inference/test_compiled_decoding.py",
    "inference/test_decoding.py",
    "inference/test_generate_command.py::test_prompts_of_a_file_and_of_the_command_line_are_continued_in_order",
    "inference/test_measuring.py",
    "kernels/test_cards.py",
    "kernels/test_flash_attention.py::test_a_benchmark_measures_plans_on_a_flash_kernel_beside_stock_models",
    "kernels/test_flash_attention.py::test_calibration_fits_what_it_fits_with_sdpa",
    "kernels/test_grouped.py::test_flex_attention_replays_the_map",
    "kernels/test_mutated_kernels.py",
    "kernels/test_rows.py::test_source_and_readers_of_a_row_give_what_the_formula_gives",
    "kernels/test_tiled.py::test_source_and_readers_give_what_the_formula_gives",
    "kernels/test_tiled.py::test_untuned_tiles_are_right_at_every_head_size",
    "kernels/test_triton_models.py",
    "modeling/test_convert.py::test_a_saved_model_is_refused_without_the_package",
    "modeling/test_convert.py::test_cached_stepwise_and_left_padded_equal_one_forward",
    "modeling/test_convert.py::test_generate_is_token_identical_to_no_cache",
    "modeling/test_convert.py::test_gradients_are_the_same_with_checkpointing",
    "modeling/test_decoding.py::test_beams_samples_and_assistants_give_the_tokens_of_the_uncached_model",
    "modeling/test_further_plans.py::test_a_second_plan_is_its_result_at_once",
    "modeling/test_loading.py",
    "modeling/test_lora.py::test_a_reloaded_adapter_gives_the_same_and_export_merges_it",
    "modeling/test_saving.py::test_a_saved_model_comes_back_bit_for_bit",
    "modeling/test_training_features.py::test_a_compiled_model_has_the_same_gradients",
    "modeling/test_windows.py::test_any_window_any_steps_and_any_padding_give_the_same",
    "modeling/test_unlisted_families.py::test_a_saved_folder_loads_here_and_in_a_fresh_process",
    "plan/test_memory.py::test_activations_are_what_autograd_saves",
    "plan/test_memory.py::test_activations_of_low_rank_updates_are_what_autograd_saves",
    "plan/test_new_role.py",
    "plan/test_saved_form.py::test_a_search_that_the_former_version_began_goes_on",
    "plan/test_saved_form.py::test_a_calibration_that_the_former_version_began_goes_on",
    "reporting/",
    "resilience/test_slurm.py",
    "resilience/test_waiting.py",
    "resilience/test_moved_run.py",
    "search/test_additive_program.py",
    "search/test_proposals.py",
    "search/test_search.py",
    "security/",
    "serving/server/test_answers.py::test_a_seed_repeats_every_choice_and_choices_differ",
    "serving/server/test_answers.py::test_pieces_are_the_text_up_to_the_first_stop_string",
    "serving/server/test_engines.py::test_llama_cpp_itself_answers_as_our_own_server_does",
    "serving/server/test_load.py",
    "serving/server/test_process.py",
    "serving/vllm/test_vllm_engine.py",
    "sweeps/",
    "test_auto_registration.py",
    "test_extras.py::test_the_core_alone_calibrates_and_generates",
    "test_cli.py::test_help_has_an_example_and_imports_nothing_heavy",
    "test_printed_commands.py::test_what_a_fit_prints_runs",
    "test_printed_commands.py::test_what_a_report_prints_runs",
    "tracking/test_inputs_and_models.py",
    "tracking/test_mlflow_run.py",
    "tracking/test_server_faults.py",
    "tracking/test_store_faults.py",
    "tracking/test_tracked_fit.py",
    "training/faults/",
    "training/test_chat_fits.py",
    "training/test_card_needs.py::test_what_is_proposed_fits",
    "training/test_dry_run.py",
    "training/test_encoder_fits.py",
    "training/test_refused_start.py",
    "training/test_mixtures.py",
    "training/test_mixed_and_streamed_fits.py",
    "training/test_kill_and_resume.py",
    "training/test_measured_fit.py",
    "training/test_preference_fits.py",
    "training/test_runner.py",
    "training/test_saved_model.py",
    "training/test_distilled_fits.py",
    "training/test_source_maps.py::test_a_family_whose_queries_are_rows_of_one_projection_is_refused_for_stage_1",
    "training/test_source_maps.py::test_micro_batches_and_gradient_checkpointing_change_nothing",
    "training/test_source_maps.py::test_sources_that_would_keep_their_maps_can_be_recomputed",
    "training/test_source_maps.py::test_stage_1_trains_queries_and_keys_of_sources_beside_w_c",
    "training/test_optimizers_and_best.py",
    "training/test_strategies.py",
)
FAST_FAMILIES = ("llama", "gemma3_text")
TESTS = Path(__file__).parent
TAKES_DEVICE = "device: str"

# Before any test imports transformers or datasets: both read these once.
for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS"):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read as CUDA starts, by tests of what is deterministic
os.environ["MPLBACKEND"] = "agg"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; threads of several processes that wait for each other are many times slower than one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _load_interpreter() -> None:
    """Have Triton's kernels interpreted, before any library loads Triton for a card; torch reads its threads here."""
    from tests.kernels.interpreter import load_interpreter

    load_interpreter()


_load_interpreter()

if "UNIATTN_PL_CACHE" not in os.environ:
    os.environ["UNIATTN_PL_CACHE"] = tempfile.mkdtemp(prefix="uniattn_pl-tests-")
    atexit.register(shutil.rmtree, os.environ["UNIATTN_PL_CACHE"], ignore_errors=True)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import what a run leaves out: that takes as long as some of the tests, and needs what they need."""
    left_out = {"not slow": is_slow, "gpu": has_no_device}.get(config.option.markexpr)
    return True if left_out is not None and left_out(collection_path) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a `device` runs on the CPU, and where there is a card a second time there, marked `gpu`."""
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run whole fits first: behind the others one worker would be left with them alone."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if is_slow(item.path, item.name) or parameters.get("family", "llama") not in FAST_FAMILIES:
            item.add_marker(pytest.mark.slow)
    of_cards = [item for item in items if item.get_closest_marker("gpu")]
    if of_cards and not has_card():
        for item in of_cards:
            item.add_marker(pytest.mark.skip(reason="the case for a card: there is no CUDA device here"))


def pytest_collection_finish() -> None:
    """From here on what tests leave is collected as usual, and what was loaded for them is not looked through."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED_AS_USUAL)


def has_card() -> bool:
    """Whether torch finds a CUDA device."""
    import torch

    return torch.cuda.is_available()


def has_no_device(path: Path) -> bool:
    """Whether a test file has no test that takes a `device`."""
    return path.suffix == ".py" and TAKES_DEVICE not in path.read_text(encoding="utf-8")


def is_slow(path: Path, test: str = "") -> bool:
    """Whether a file, a folder or one of a file's tests is named in `SLOW`."""
    within = path.relative_to(TESTS).as_posix() if path.is_relative_to(TESTS) else ""
    return f"{within}::{test}".startswith(SLOW) or f"{within}/".startswith(SLOW)
