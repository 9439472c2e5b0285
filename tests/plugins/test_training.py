"""The training program at each of its places: what is started there, with which settings, and that no secret goes along."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from listing_lens.errors import LensError
from plugins.hooks.process import ProcessHook
from plugins.operators import training
from plugins.operators.training import training_task

SECRET = "hush-hush"
ARGUMENTS = {"name": "{{ run }}", "recipe": "{{ recipe | tojson }}", "with": ["a/b@1", "pixels:16"]}
WORDS = ["train", "--name=june", '--recipe={"epochs": 5, "tower": null}', "--with", "a/b@1", "pixels:16"]
ELSEWHERE = {
    "LENS_LAKE": "gs://bucket/lake",
    "LENS_MLFLOW_URL": "https://mlflow.example.com",
    "LENS_ELASTICSEARCH_API_KEY": SECRET,
    "LENS_TRAINING_IMAGE": "images.example.com/listing-lens-training:1",
    "LENS_TRAINING_FOLDER": "/checkpoints",
}
POD = {
    "namespace": "ml",
    "service_account_name": "trainer",
    "container_resources": {"limits": {"nvidia.com/gpu": "2"}},
    "env_vars": {"NCCL_DEBUG": "WARN"},
    "pod_template_dict": {
        "spec": {
            "volumes": [{"name": "checkpoints", "persistentVolumeClaim": {"claimName": "checkpoints"}}],
            "containers": [
                {
                    "name": "base",
                    "envFrom": [{"secretRef": {"name": "listing-lens"}}],
                    "volumeMounts": [{"name": "checkpoints", "mountPath": "/checkpoints"}],
                }
            ],
        }
    },
}
VERTEX = {
    "project": "shop",
    "region": "europe-west4",
    "staging_bucket": "gs://staging",
    "machine_type": "a2-highgpu-2g",
    "accelerator_type": "NVIDIA_TESLA_A100",
    "accelerator_count": 2,
    "environment_variables": {"NCCL_DEBUG": "WARN"},
}
OPTIONS = {"kubernetes": POD, "vertex": VERTEX}


def place(monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any] | None = None, **settings: str) -> None:
    """Set the place of training, with all that it needs, or with other settings where given."""
    variables = ELSEWHERE | {
        "LENS_TRAINING_PLACE": name,
        "LENS_TRAINING_OPTIONS": json.dumps(OPTIONS[name] if options is None else options),
    }
    for variable, value in (variables | settings).items():
        monkeypatch.setenv(variable, value)


def rendered(command: str = "train") -> Any:
    """The task, its templates filled in as a run does."""
    task = training_task(task_id="train", command=command, arguments=ARGUMENTS)
    run: Any = {
        "run": "june",
        "recipe": {"epochs": 5, "tower": None},
        "dag_run": SimpleNamespace(run_id="manual__june"),
    }
    task.render_template_fields(run)
    return task


# ---- the host --------------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is run instead of the program."""
    monkeypatch.setattr(training, "PROGRAM", "small_program")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(ProcessHook, "_log", logging.getLogger("training"), raising=False)
    return tmp_path / "small_program.py"


class TestHost:
    def test_the_program_runs_and_its_log_is_the_task_s(self, program: Path, caplog: pytest.LogCaptureFixture) -> None:
        program.write_text("import sys; print(sys.argv[1:]); print('step 1', file=sys.stderr)")
        with caplog.at_level(logging.INFO):
            rendered().execute({})
        lines = [record.getMessage() for record in caplog.records]
        assert {str(WORDS), "step 1"} <= set(lines)

    def test_several_processes_are_launched_by_accelerate(
        self, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LENS_TRAINING_PROCESSES", "2")
        program.write_text(
            "import json, os, sys; from pathlib import Path; "
            f"Path({str(tmp_path)!r}, 'seen').write_text(json.dumps([sys.argv[1:], 'ACCELERATE_MIXED_PRECISION' in os.environ]))"
        )
        task = rendered()
        assert "--num_processes=2" in task.command
        task.execute({})
        assert json.loads((tmp_path / "seen").read_text()) == [WORDS, True]

    def test_only_the_training_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENS_TRAINING_PROCESSES", "2")
        assert rendered("compare").command == [sys.executable, "-m", training.PROGRAM, "compare", *WORDS[1:]]

    def test_a_failure_says_the_last_line(self, program: Path) -> None:
        program.write_text("import sys; sys.exit('error: the GPU is out of memory: halve the batch')")
        with pytest.raises(AirflowException, match="the training program ended with code 1: error: the GPU is out of"):
            rendered().execute({})

    def test_wrong_arguments_are_not_tried_again(self, program: Path) -> None:
        program.write_text("import argparse; argparse.ArgumentParser().parse_args()")
        with pytest.raises(AirflowFailException, match="the training program does not take its arguments"):
            rendered().execute({})

    def test_the_program_dies_with_the_task_also_where_it_has_another_group(
        self, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As the workers of torch's launcher, which each lead a group, and may be busy when they are asked to end."""
        monkeypatch.setattr("listing_lens.process_group.GRACE_S", 0.2)
        pids = tmp_path / "pids"
        program.write_text(
            "import os, signal, subprocess, sys, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "if len(sys.argv) > 1:\n"
            "    worker = subprocess.Popen([sys.executable, '-m', 'small_program'], start_new_session=True)\n"
            f"    open({str(pids)!r} + '.part', 'w').write(f'{{os.getpid()}} {{worker.pid}}')\n"
            f"    os.rename({str(pids)!r} + '.part', {str(pids)!r})\n"
            "time.sleep(3600)\n"
        )
        task, failures = rendered(), []

        def run() -> None:
            try:
                task.execute({})
            except AirflowException as err:
                failures.append(err)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while not pids.exists():
            time.sleep(0.05)
        processes = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
        assert len({os.getpgid(process.pid) for process in processes} | {os.getpgrp()}) == 3
        task.on_kill()
        thread.join()
        assert failures
        _gone, alive = psutil.wait_procs(processes, timeout=300)
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]

    def test_a_task_that_never_ran_can_be_killed(self) -> None:
        rendered().on_kill()

    def test_options_of_another_place_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LENS_TRAINING_OPTIONS", json.dumps(POD))
        with pytest.raises(LensError, match="^LENS_TRAINING_OPTIONS is set, but the host takes no options"):
            rendered()


# ---- elsewhere -------------------------------------------------------------------------------------------------------


def pod_of(task: BaseOperator) -> dict[str, Any]:
    """What the cluster would be asked for."""
    from kubernetes.client import ApiClient, Configuration

    pod = task.build_pod_request_obj(dry_run=True)
    return dict(ApiClient(Configuration()).sanitize_for_serialization(pod))


class TestKubernetes:
    def test_the_pod_is_what_was_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        place(monkeypatch, "kubernetes", LENS_TRAINING_PROCESSES="2")
        pod = pod_of(rendered())
        [container] = pod["spec"]["containers"]
        assert pod["metadata"]["namespace"] == "ml"
        assert pod["metadata"]["name"].startswith("listing-lens-train-")
        assert pod["spec"]["serviceAccountName"] == "trainer"
        assert container["image"] == ELSEWHERE["LENS_TRAINING_IMAGE"]
        assert container["resources"] == {"limits": {"nvidia.com/gpu": "2"}}
        assert container["command"][:4] == ["python", "-m", "accelerate.commands.launch", "--num_processes=2"]
        assert container["command"][-len(WORDS) - 2 :] == ["-m", training.PROGRAM, *WORDS]

    def test_volumes_and_secrets_come_from_its_template(self, monkeypatch: pytest.MonkeyPatch) -> None:
        place(monkeypatch, "kubernetes")
        spec = pod_of(rendered())["spec"]
        [container] = spec["containers"]
        assert spec["volumes"] == POD["pod_template_dict"]["spec"]["volumes"]
        assert container["volumeMounts"] == [{"name": "checkpoints", "mountPath": "/checkpoints"}]
        assert container["envFrom"] == [{"secretRef": {"name": "listing-lens"}}]

    def test_settings_go_along_without_secrets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        place(monkeypatch, "kubernetes")
        task = rendered()
        pod = pod_of(task)
        variables = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
        assert variables["LENS_LAKE"] == "gs://bucket/lake"
        assert variables["LENS_TRAINING_FOLDER"] == "/checkpoints"
        assert variables["NCCL_DEBUG"] == "WARN"
        assert "LENS_ELASTICSEARCH_API_KEY" not in variables
        assert SECRET not in str(pod) + str(vars(task))

    def test_a_cluster_may_add_a_machine_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        place(monkeypatch, "kubernetes")
        assert rendered().startup_timeout_seconds == 1800
        place(monkeypatch, "kubernetes", POD | {"startup_timeout_seconds": 60})
        assert rendered().startup_timeout_seconds == 60


class TestVertex:
    def test_the_job_is_what_was_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        place(monkeypatch, "vertex", LENS_TRAINING_PROCESSES="2", LENS_TRAINING_FOLDER="/gcs/bucket/checkpoints")
        task = rendered()
        assert (task.project_id, task.region, task.staging_bucket) == ("shop", "europe-west4", "gs://staging")
        assert task.container_uri == ELSEWHERE["LENS_TRAINING_IMAGE"]
        assert (task.machine_type, task.accelerator_type, task.accelerator_count) == (
            "a2-highgpu-2g",
            "NVIDIA_TESLA_A100",
            2,
        )
        assert task.display_name == "listing-lens train manual__june"
        assert task.command[:4] == ["python", "-m", "accelerate.commands.launch", "--num_processes=2"]
        assert task.command[-len(WORDS) - 2 :] == ["-m", training.PROGRAM, *WORDS]

    def test_settings_go_along_without_secrets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        place(monkeypatch, "vertex", LENS_TRAINING_FOLDER="/gcs/bucket/checkpoints")
        task = rendered()
        assert task.environment_variables["LENS_MLFLOW_URL"] == "https://mlflow.example.com"
        assert task.environment_variables["LENS_TRAINING_FOLDER"] == "/gcs/bucket/checkpoints"
        assert task.environment_variables["NCCL_DEBUG"] == "WARN"
        assert SECRET not in str(vars(task))

    def test_a_lake_on_this_machine_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        place(monkeypatch, "vertex", LENS_LAKE="/lake")
        with pytest.raises(LensError, match="^LENS_LAKE=/lake is a folder of this machine"):
            rendered()


class TestTheDoor:
    @pytest.mark.parametrize(
        ("name", "option"),
        [("kubernetes", "namespace"), ("vertex", "project"), ("vertex", "region"), ("vertex", "staging_bucket")],
    )
    def test_an_option_that_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch, name: str, option: str) -> None:
        place(monkeypatch, name, {key: value for key, value in OPTIONS[name].items() if key != option})
        with pytest.raises(LensError, match=f"^LENS_TRAINING_OPTIONS lacks '{option}', which {name} needs$"):
            rendered()

    @pytest.mark.parametrize("name", OPTIONS)
    @pytest.mark.parametrize("setting", ["LENS_TRAINING_IMAGE", "LENS_TRAINING_FOLDER", "LENS_MLFLOW_URL"])
    def test_a_setting_that_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch, name: str, setting: str) -> None:
        place(monkeypatch, name, **{setting: ""})
        with pytest.raises(LensError, match=f"^{setting} is not set: {name} needs"):
            rendered()

    @pytest.mark.parametrize("name", OPTIONS)
    def test_an_address_of_this_machine_is_refused(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        place(monkeypatch, name, LENS_MLFLOW_URL="http://127.0.0.1:5000")
        with pytest.raises(LensError, match="^LENS_MLFLOW_URL is http://127.0.0.1:5000: .* that other machines can"):
            rendered()

    @pytest.mark.parametrize("name", OPTIONS)
    def test_an_option_that_the_operator_lacks_is_named(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        place(monkeypatch, name, OPTIONS[name] | {"gpus": 8})
        with pytest.raises(LensError, match="^LENS_TRAINING_OPTIONS do not fit .*gpus"):
            rendered()

    @pytest.mark.parametrize("name", OPTIONS)
    def test_what_the_task_sets_cannot_be_set_besides(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        place(monkeypatch, name, OPTIONS[name] | {"task_id": "mine"})
        with pytest.raises(LensError, match="^LENS_TRAINING_OPTIONS: task_id is not yours to set"):
            rendered()
