"""TGI's launch plan: its bare variables, its derived ports, its long shutdown."""

from __future__ import annotations

import dataclasses

import pytest

from cortexd.backends import BACKENDS
from cortexd.errors import InvalidConfig
from tests.backends.plans import HOME, SCOPE, after, check, plan_of, spec_of


def test_tgi() -> None:
    plan = plan_of(
        "tgi", gpus=("0", "1"), tensor_parallel=2, host="0.0.0.0", max_model_len=2048, gpu_memory_utilization=0.8
    )
    assert plan.argv[:3] == ("/opt/tgi/bin/text-generation-launcher", "--model-id", "org/name")
    assert (after(plan, "--num-shard"), after(plan, "--cuda-memory-fraction")) == ("2", "0.8")
    assert (after(plan, "--max-total-tokens"), after(plan, "--max-input-tokens")) == ("2048", "2047")
    assert HOME / ".cache/huggingface" in plan.writes


def test_what_the_launcher_would_refuse_is_refused_at_once() -> None:
    with pytest.raises(InvalidConfig, match="max_model_len=1: tgi needs room for a prompt and an answer; give 2"):
        check("tgi", max_model_len=1)
    check("tgi", max_model_len=2)
    assert after(plan_of("tgi", max_model_len=2), "--max-input-tokens") == "1"
    with pytest.raises(InvalidConfig, match=r"quantization='exl2': .*tensor_parallel=1"):
        check("tgi", quantization="exl2", gpus=("0", "1"), tensor_parallel=2)
    check("tgi", quantization="exl2")


def test_tgi_shards_are_counted_by_us_not_by_the_gpus_it_sees() -> None:
    assert after(plan_of("tgi", gpus=("0", "1")), "--num-shard") == "1"
    assert after(plan_of("tgi", gpus=()), "--num-shard") == "1"


def test_tgi_reads_bare_names() -> None:
    """Any of them in the manager's environment would be an option, up to a tunnel for everybody and code of the model's."""
    unset = set(plan_of("tgi").unset_environment)
    assert unset >= {"PORT", "HOSTNAME", "MODEL_ID", "API_KEY", "NUM_SHARD", "QUANTIZE", "NGROK", "TRUST_REMOTE_CODE"}
    flags = {word for word in plan_of("tgi", quantization="awq").argv if word.startswith("--")}
    assert unset >= {flag.removeprefix("--").replace("-", "_").upper() for flag in flags}
    assert unset >= {
        flag.removeprefix("--").replace("-", "_").upper() for flag in BACKENDS["tgi"].owned if "--" in flag
    }
    # What belongs to the user, or to the hub's library, is left alone.
    assert not unset & {"HF_TOKEN", "HF_HOME", "HUGGINGFACE_HUB_CACHE", "LOG_LEVEL", "CUDA_VISIBLE_DEVICES", "PATH"}


def test_tgi_instances_share_no_port_and_no_path() -> None:
    """Each launcher has three: its own, Prometheus' and the shards'; all where the kernel gives none away."""
    own: dict[str, set[str]] = {"--prometheus-port": set(), "--master-port": set(), "--shard-uds-path": set()}
    ports = [1, 80, 1023, *range(1024, 32768, 7), 32768, 65535]
    for port in ports:
        plan = plan_of("tgi", f"m{port}", port=port)
        three = [port, int(after(plan, "--prometheus-port")), int(after(plan, "--master-port"))]
        assert len(set(three)) == 3
        assert all(1024 <= derived < 32768 for derived in three[1:])
        if 1024 <= port < 32768:
            for flag, seen in own.items():
                assert after(plan, flag) not in seen
                seen.add(after(plan, flag))
    near = {port: plan_of("tgi", port=port) for port in range(8000, 8100)}
    taken = [
        *near,
        *(int(after(plan, flag)) for plan in near.values() for flag in ("--prometheus-port", "--master-port")),
    ]
    assert len(set(taken)) == 300


@pytest.mark.parametrize("word", ["-p8001", "-p=8001"])
def test_a_short_option_with_its_value_attached(word: str) -> None:
    with pytest.raises(InvalidConfig, match=f"extra_args='{word}': is given by a setting; use port="):
        check("tgi", extra_args=word)


def test_the_router_and_the_shards_use_one_cache() -> None:
    moved = dataclasses.replace(SCOPE, variables={"HF_HUB_CACHE": "/big/hub"})
    environment = BACKENDS["tgi"].plan(spec_of("tgi"), moved).environment
    assert environment["HUGGINGFACE_HUB_CACHE"] == environment["HF_HUB_CACHE"] == "/big/hub"


def test_progress_is_counted_while_a_request_lasts() -> None:
    """tgi_request_success grows at a request's end; the steps of a batch grow all the time."""
    activity = plan_of("tgi").activity
    assert activity is not None and activity.path == "/metrics"
    assert {"tgi_request_success", "tgi_batch_inference_count"} <= set(activity.counters)
