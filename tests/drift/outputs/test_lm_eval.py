"""lm-evaluation-harness results: its layout, and a third-party reader of the lines."""

import dataclasses
import datetime
import hashlib
import json
import statistics

import pytest
from support.drift_reports import report

from tightfit.drift.answers import Answer, ModelAnswers
from tightfit.drift.data.problem import Problem
from tightfit.drift.grading import Grade
from tightfit.drift.outputs.lm_eval import model_name, sanitized, task_name, write_lm_eval
from tightfit.drift.protocol import PROTOCOLS
from tightfit.runtimes.results import StopReason

DATE = datetime.datetime(2026, 11, 22, 20, 13, 5, 250_000, tzinfo=datetime.UTC)
STAMP = "2026-11-22T20-13-05.250000"
BASELINE = "deepseek-ai__DeepSeek-R1-Distill-Qwen-7B"
ARTIFACT = BASELINE + "__model-Q4_K_M.gguf"
ORIGINALS = [
    {"problem": "1 + 1?", "answer": "2", "level": 1, "unique_id": "a/1.json"},
    {
        "problem": "Größe\u2028of \u0085 it?",
        "answer": "\\frac{1}{2}",
        "level": 5,
        "unique_id": "a/2",
    },
    {"problem": "2^3?", "answer": "8", "level": 2, "unique_id": "a/3.json"},
]
PROMPTS = [f"<|User|>{row['problem']}<|Assistant|><think>\n" for row in ORIGINALS]
PROBLEMS = [
    Problem(unique_id=row["unique_id"], problem=row["problem"], answer=row["answer"], original=row)
    for row in ORIGINALS
]


def answers(*grades, samples=1):
    return ModelAnswers(
        samples=samples,
        answers=tuple(
            Answer(
                problem=index // samples,
                sample=index % samples,
                token_ids=(1, 2),
                text=f"thought {index}\u2028</think>\\boxed{{{index}}}",
                stop=StopReason.LENGTH if grade is Grade.TRUNCATED else StopReason.END,
                grade=grade,
            )
            for index, grade in enumerate(grades)
        ),
    )


BASELINE_ANSWERS = answers(Grade.CORRECT, Grade.CORRECT, Grade.WRONG)
ARTIFACT_ANSWERS = answers(Grade.CORRECT, Grade.TRUNCATED, Grade.WRONG)


def write(folder, *, of=None, baseline=BASELINE_ANSWERS, artifact=ARTIFACT_ANSWERS):
    return write_lm_eval(
        folder,
        of or report(),
        problems=PROBLEMS,
        prompts=PROMPTS,
        baseline=baseline,
        artifact=artifact,
        date=DATE,
    )


def sha256(text):
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def test_files_lie_where_the_harness_puts_them(tmp_path) -> None:
    written = write(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in written} == {
        f"{model}/{file}"
        for model in (BASELINE, ARTIFACT)
        for file in (f"results_{STAMP}.json", f"samples_tightfit_math500_{STAMP}.jsonl")
    }
    # lm_eval.utils.get_file_task_name and get_file_datetime take names apart like this.
    name = next(path.name for path in written if path.suffix == ".jsonl")
    assert name[name.find("_") + 1 : name.rfind("_")] == task_name(report()) == "tightfit_math500"
    assert name[name.rfind("_") + 1 :].removesuffix(".jsonl") == STAMP


def test_the_same_input_gives_the_same_bytes(tmp_path) -> None:
    first = [path.read_bytes() for path in write(tmp_path / "one")]
    assert first == [path.read_bytes() for path in write(tmp_path / "two")]


def test_results_hold_the_figures_of_each_side(tmp_path) -> None:
    written = write(tmp_path)
    baseline, artifact = (
        json.loads(path.read_text(encoding="utf-8")) for path in written if path.suffix == ".json"
    )
    scores = [1.0, 0.0, 0.0]
    metrics = artifact["results"]["tightfit_math500"]
    assert metrics["alias"] == "tightfit_math500"
    assert metrics["sample_len"] == 3
    assert metrics["exact_match,none"] == pytest.approx(1 / 3)
    # lm_eval.api.metrics.mean_stderr
    expected = statistics.stdev(scores) / len(scores) ** 0.5
    assert metrics["exact_match_stderr,none"] == pytest.approx(expected)
    assert metrics["kl_mean_nats,none"] == 0.004
    assert metrics["kl_mean_nats_stderr,none"] == 0.0004
    assert metrics["token_perplexity,none"] == 1.319
    assert metrics["token_perplexity_stderr,none"] == "N/A"
    assert artifact["higher_is_better"]["tightfit_math500"] == {
        "exact_match": True,
        "token_perplexity": False,
        "kl_mean_nats": False,
        "top1_agreement": True,
    }
    assert artifact["n-samples"]["tightfit_math500"] == {"original": 64, "effective": 3}
    assert artifact["model_source"] == artifact["config"]["model"] == "gguf"
    assert artifact["config"]["model_args"]["bits_per_weight"] == 4.85
    assert artifact["date"] == DATE.timestamp()

    other = baseline["results"]["tightfit_math500"]
    assert other["exact_match,none"] == pytest.approx(2 / 3)
    assert other["token_perplexity,none"] == 1.312
    assert "kl_mean_nats,none" not in other
    assert baseline["model_name"] == "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    assert baseline["model_source"] == "hf"
    assert baseline["config"]["model_revision"] == report().baseline.revision
    assert baseline["task_hashes"] == artifact["task_hashes"]


def test_samples_hold_the_answers_and_the_hashes(tmp_path) -> None:
    path = next(
        path for path in write(tmp_path) if path.parent.name == ARTIFACT and "samples" in path.name
    )
    lines = path.read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    assert [sample["doc_id"] for sample in samples] == [0, 1, 2]
    second = samples[1]
    assert second["doc"] == ORIGINALS[1]
    assert second["target"] == "\\frac{1}{2}"
    assert second["arguments"]["gen_args_0"]["arg_0"] == PROMPTS[1]
    assert second["arguments"]["gen_args_0"]["arg_1"]["max_gen_toks"] == 32_768
    assert second["resps"] == [[ARTIFACT_ANSWERS.answers[1].text]]
    assert second["filtered_resps"] == [ARTIFACT_ANSWERS.answers[1].text]
    assert (second["exact_match"], second["grades"], second["stops"]) == (
        0.0,
        ["truncated"],
        ["length"],
    )
    # lm_eval.evaluator.evaluate and EvaluationTracker.save_results_aggregated
    assert second["doc_hash"] == sha256(json.dumps(ORIGINALS[1], indent=2, ensure_ascii=False))
    assert second["prompt_hash"] == sha256(PROMPTS[1])
    assert second["target_hash"] == sha256("\\frac{1}{2}")
    results = json.loads((path.parent / f"results_{STAMP}.json").read_text(encoding="utf-8"))
    joined = "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)
    assert results["task_hashes"] == {"tightfit_math500": sha256(joined)}


def test_several_answers_to_a_problem_stand_on_one_line(tmp_path) -> None:
    four = answers(
        Grade.CORRECT,
        Grade.WRONG,
        Grade.CORRECT,
        Grade.CORRECT,
        Grade.WRONG,
        Grade.WRONG,
        samples=2,
    )
    sampled = dataclasses.replace(
        report(), protocol=dataclasses.replace(PROTOCOLS["deepseek"], samples=2)
    )
    paths = write(tmp_path, of=sampled, baseline=four, artifact=four)
    samples = [json.loads(line) for line in paths[3].read_text().splitlines()]
    assert [sample["exact_match"] for sample in samples] == [0.5, 1.0, 0.0]
    assert [len(sample["resps"][0]) for sample in samples] == [2, 2, 2]
    results = json.loads(paths[2].read_text(encoding="utf-8"))
    assert results["results"]["tightfit_math500"]["exact_match,none"] == 0.5
    assert results["configs"]["tightfit_math500"]["repeats"] == 2


def test_a_sequential_stop_leaves_the_rest_out(tmp_path) -> None:
    first, second = (
        dataclasses.replace(answers, answers=answers.answers[: answers.samples])
        for answers in (BASELINE_ANSWERS, ARTIFACT_ANSWERS)
    )
    paths = write(tmp_path, baseline=first, artifact=second)
    results = json.loads(paths[2].read_text(encoding="utf-8"))
    metrics = results["results"]["tightfit_math500"]
    assert metrics["sample_len"] == 1
    assert metrics["exact_match_stderr,none"] == "N/A"
    assert len(paths[3].read_text().splitlines()) == 1


def test_without_token_drift_only_accuracy_is_there(tmp_path) -> None:
    without = dataclasses.replace(report(), tokens=None, tokens_absent="no log-probabilities")
    results = json.loads(write(tmp_path, of=without)[2].read_text(encoding="utf-8"))
    assert results["higher_is_better"] == {"tightfit_math500": {"exact_match": True}}


def test_names_become_safe_file_names() -> None:
    local = dataclasses.replace(
        report(name="..\\x:y?.gguf"),
        baseline=dataclasses.replace(report().baseline, id="../models/r1"),
        data=dataclasses.replace(report().data, source="data/my set.v2.jsonl"),
    )
    folder = sanitized(model_name(local, "artifact"))
    assert folder == "..__models__r1__..__x__y__.gguf"
    assert task_name(local) == "tightfit_my_set_v2"


def test_the_datasets_library_reads_the_samples(tmp_path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    path = write(tmp_path / "results")[3]
    rows = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows.num_rows == 3
    assert rows[1]["doc"]["problem"] == ORIGINALS[1]["problem"]
    assert rows["exact_match"][:] == [1.0, 0.0, 0.0]
