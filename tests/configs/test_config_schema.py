"""Configurations: what is valid survives every road, what is not is refused in one clear message."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_suite.agents.model.settings import TransformerSettings
from memory_suite.configs import agent_schema as schema
from memory_suite.configs import command_line, model, run_config, sequence_schema
from memory_suite.configs.agent_schema import PRESETS, TrainConfig, from_dict, load
from memory_suite.configs.run_config import to_dict, to_yaml

OPTIONS = command_line.options_of(TrainConfig)


def number(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


seeds = st.integers(0, 2**32 - 1)
rates = number(1e-8, 1.0)
unit = number(0.0, 1.0)
schedules = st.sampled_from(["constant", "linear"])
arguments = st.dictionaries(
    st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True),
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    max_size=3,
)
memories = st.builds(
    schema.AgentMemoryConfig,
    kind=st.sampled_from(["expire-span", "transformer-xl", "adaptive-span", "compressive", "none"]),
    max_span=st.integers(100, 10**6),
    ramp=st.integers(1, 100),
    initial_span_fraction=number(0.001, 0.999),
    size=st.integers(1, 10**4),
    compressed_size=st.integers(1, 10**4),
    compression_rate=st.integers(1, 100),
    random_shortening=st.booleans(),
    position_window=st.integers(0, 64),
)
policies = st.builds(
    schema.PolicyConfig,
    width=st.sampled_from([16, 64]),
    num_layers=st.integers(1, 12),
    num_heads=st.sampled_from([1, 2, 4, 8]),
    layer_drop=number(0.0, 0.9),
    attention=st.sampled_from(["auto", "plain"]),
    normalize_observations=st.booleans(),
)
ppo_configs = st.builds(
    schema.PPOConfig,
    learning_rate=rates,
    learning_rate_schedule=schedules,
    n_steps=st.sampled_from([16, 32]),
    batch_size=st.sampled_from([32, 64]),
    target_kl=st.none() | rates,
)
a2c_configs = st.builds(
    schema.A2CConfig, learning_rate=rates, learning_rate_schedule=schedules, critic_lambda=unit
)
configs = st.builds(
    TrainConfig,
    env=st.text(min_size=1),
    env_args=arguments,
    eval_env_args=arguments,
    algo=st.sampled_from(["ppo", "a2c"]),
    total_steps=st.integers(10**4, 10**9),
    num_envs=st.sampled_from([4, 64]),
    seed=seeds,
    run=st.none() | st.sampled_from([Path("a b"), Path("none")]),
    device=st.sampled_from(["cpu", "cuda", "auto"]),
    track=st.sampled_from(["offline", "online", "disabled"]),
    csv=st.booleans(),
    memory=memories,
    policy=policies,
    ppo=ppo_configs,
    a2c=a2c_configs,
    method=st.sampled_from(["counterfactual", "paper", "none"]),
    penalty=st.builds(schema.PenaltyConfig, weight=number(1e-9, 1e-3)),
    stop=st.builds(schema.StopConfig, retained=st.none() | number(0.0, 100.0)),
    evaluation=st.builds(schema.EvaluationConfig, episodes=st.integers(1, 10**5), seed=seeds),
)


@given(config=configs)
def test_plain_types_and_json_keep_a_configuration(config: TrainConfig) -> None:
    assert from_dict(to_dict(config)) == config
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@given(config=configs)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_yaml_keeps_an_experiment(config: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load(["--config", str(path)]) == dataclasses.replace(config, run=None, resume=None)


@given(config=configs)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_command_line_can_say_all_that_yaml_can(config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, env_args={}, eval_env_args={}, run=None)
    words = []
    for setting in command_line.values_from_mapping(to_dict(config), OPTIONS):
        words.append(f"--{setting.option.replace('_', '-')}={setting.value}")
    assert load(words, presets=tmp_path) == config


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_loads_and_names_its_environment(path: Path) -> None:
    assert load(["--env", path.stem]) == load(["--config", str(path)])
    assert load(["--config", str(path)]).env == path.stem
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("words", "steps"), [("", 512), ("--num-envs 2", 128), ("--num-envs 4 --ppo.n-steps 100", 400)]
)
def test_a_minibatch_is_at_most_a_rollout(words: str, steps: int) -> None:
    assert load(words.split()).minibatch_steps == steps


def test_the_default_is_the_corridor_long_preset() -> None:
    assert load([]) == load(["--env", "corridor-long"])


def test_an_environment_without_a_preset_gets_the_defaults() -> None:
    assert load(["--env", "Acrobot-v1"]) == TrainConfig(env="Acrobot-v1")
    assert load(["--env", "../configs/corridor-short"]).memory == schema.AgentMemoryConfig()


def test_the_command_line_wins_over_yaml_and_the_last_word_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("seed: 1\nmemory: {ramp: 2, max-span: 99}\nenv: CartPole-v1\npolicy:\n")
    config = load(["--config", str(path), "--seed=7", "--seed", "8"])
    assert (config.seed, config.memory.ramp, config.memory.max_span, config.env) == (8, 2, 99, "CartPole-v1")


@pytest.mark.parametrize(
    ("words", "option", "value"),
    [
        (["--memory.max-span", "99"], "memory.max_span", 99),
        (["--memory.max_span=99"], "memory.max_span", 99),
        (["--total_steps", "1_000_000"], "total_steps", 1_000_000),
        (["--memory", "transformer-xl"], "memory.kind", "transformer-xl"),
        (["--memory=none"], "memory.kind", "none"),
        (["--method", "paper"], "method", "paper"),
        (["--csv"], "csv", True),
        (["--csv", "--seed", "1"], "csv", True),
        (["--csv", "False"], "csv", False),
        (["--stop.success", "None"], "stop.success", None),
        (["--ppo.learning-rate", "1e-5"], "ppo.learning_rate", 1e-5),
        (["--run", "runs/a b"], "run", "runs/a b"),
    ],
)
def test_spellings(words: list[str], option: str, value: object) -> None:
    values: Any = to_dict(load(words))
    for part in option.split("."):
        values = values[part]
    assert values == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10000", 10000),
        ("-3", -3),
        ("1e-5", 1e-5),
        ("2.5", 2.5),
        ("true", True),
        ("log-uniform", "log-uniform"),
        ("'5'", "5"),
        ("a=b", "a=b"),
        ("2020-01-01", "2020-01-01"),
        ("[", "["),
    ],
)
@pytest.mark.parametrize("form", ["--env-arg key={}", "--env_args key={}", "--env-args.key={}"])
def test_environment_arguments_are_typed(form: str, text: str, value: object) -> None:
    result = load([*form.format(text).split(" ", 1), "--eval-env-arg=other=1"]).env_args["key"]
    assert (result, type(result)) == (value, type(value))


def test_environment_arguments_add_up(tmp_path: Path) -> None:
    (tmp_path / "corridor-long.yaml").write_text("env_args: {shape: straight, length: 1}")
    words = ["--env-arg", "length=5", "--env-arg", "view=3", "--env-arg", "length=7"]
    config = load(words, presets=tmp_path)
    assert config.env_args == {"shape": "straight", "length": 7, "view": 3}
    assert config.eval_env_args == {}


def test_resume_reads_the_configuration_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(TrainConfig(env="corridor-endless", seed=5)))
    config = load(["--resume", str(tmp_path), "--total-steps", "123456"])
    assert (config.env, config.seed, config.total_steps) == ("corridor-endless", 5, 123456)
    assert config.memory == schema.AgentMemoryConfig()
    assert config.resume == tmp_path


@pytest.mark.parametrize(
    ("of_run", "reader", "said"),
    [
        (sequence_schema, schema, "a run of train_sequence.py (task collision); use {}_sequence.py"),
        (schema, sequence_schema, "a run of train_agent.py (env CartPole-v1); use {}_agent.py"),
    ],
)
def test_a_run_of_the_other_kind_is_named(
    of_run: ModuleType, reader: ModuleType, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    words = ["--task", "collision"] if of_run is sequence_schema else ["--env", "CartPole-v1"]
    (run / "config.yaml").write_text(to_yaml(of_run.load(words)))
    with pytest.raises(ValueError, match="run of train_") as refused:
        reader.from_yaml(run / "config.yaml")
    assert str(refused.value) == f"{run} is {said.format('evaluate')}"
    with pytest.raises(SystemExit):
        reader.load(["--resume", str(run)])
    assert f"error: {run} is {said.format('train')}\n" in capsys.readouterr().err


def test_a_preset_of_the_other_kind_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    file = sequence_schema.SequenceConfig.PRESETS / "copy.yaml"
    with pytest.raises(SystemExit):
        load(["--config", str(file)])
    said = "is a configuration of train_sequence.py (task copy); use train_sequence.py"
    assert f"{command_line.display_path(file)} {said}" in capsys.readouterr().err


BAD_COMMAND_LINES = {
    "--memory.rampp 4": "memory.rampp is not an option; did you mean memory.ramp?",
    "--ramp 4": "did you mean memory.ramp?",
    "--learning-rate 1": "did you mean ppo.learning_rate or a2c.learning_rate?",
    "--tarck offline": "did you mean track?",
    "--policy none": "policy is a group of options",
    "--memory lstm": "memory.kind must be one of expire-span, transformer-xl, adaptive-span",
    "--memory": "memory.kind needs a value: one of expire-span",
    "--memory.size 0": "memory.size must be at least 1, got 0",
    "--memory.compressed-size 0": "memory.compressed_size must be at least 1, got 0",
    "--memory.compression-rate 0": "memory.compression_rate must be at least 1, got 0",
    "--memory adaptive-span --memory.ramp 2000000": "(2000000) must not exceed memory.max_span (1048576)",
    "--zzzzzz 1": "zzzzzz is not an option",
    "--seed": "seed needs a value: an integer",
    "--seed --csv": "seed needs a value: an integer",
    "--seed one": "seed must be an integer, got 'one'",
    "--seed 1.0": "seed must be an integer, got '1.0'",
    "--seed -1": "seed must lie in [0, 4294967295], got -1",
    "--csv maybe": "csv must be true or false, got 'maybe'",
    "--algo dqn": "algo must be one of ppo, a2c, got 'dqn'",
    "--track yes": "track must be one of offline, online, disabled",
    "--device gpu": "device must be one of cpu, cuda, auto",
    "--memory.kind lstm": "adaptive-span, compressive, none, got 'lstm'",
    "--memory.ramp 0": "memory.ramp must be at least 1, got 0",
    "--memory.ramp 2000 --memory.max-span 99": "memory.ramp (2000) must not exceed memory.max_span (99)",
    "--method best": "method must be one of counterfactual, paper, none, got 'best'",
    "--memory.initial-span-fraction 1": "memory.initial_span_fraction must lie in (0, 1), got 1.0",
    "--policy.num-heads 3": "policy.num_heads (3) must divide policy.width (64)",
    "--policy.layer-drop 1": "policy.layer_drop must lie in [0, 1)",
    "--policy.attention flash": "policy.attention must be one of auto, plain, fused, got 'flash'",
    "--policy.attention fused": "policy.attention=fused does not support device=cpu; it needs cuda",
    "--policy.attention fused --device cuda --method paper --penalty.form ramp": "support penalty.form=ramp",
    "--ppo.learning-rate nan": "ppo.learning_rate must be a finite number, got 'nan'",
    "--ppo.learning-rate inf": "ppo.learning_rate must be a finite number, got 'inf'",
    "--ppo.gamma 1.5": "ppo.gamma must lie in [0, 1], got 1.5",
    "--ppo.batch-size 100": "ppo.batch_size (100) must be a multiple of ppo.n_steps (64)",
    "--ppo.batch-size 192": "ppo.batch_size (192) must divide ppo.n_steps * num_envs",
    "--ppo.target-kl 0": "ppo.target_kl must be greater than 0",
    "--ppo.critic-lambda 2": "ppo.critic_lambda must lie in [0, 1], got 2",
    "--a2c.adam-eps 0": "a2c.adam_eps must be greater than 0",
    "--ppo.adam-beta2 1": "ppo.adam_beta2 must lie in [0, 1)",
    "--ppo.adam-eps 0": "ppo.adam_eps must be greater than 0",
    "--a2c.adam-eps inf": "a2c.adam_eps must be a finite number",
    "--num-envs 0": "num_envs must be at least 1",
    "--threads 0": "threads must be at least 1",
    "--total-steps 100": "total_steps (100) must be at least one rollout",
    "--penalty.weight -1": "penalty.weight must be at least 0, and finite, got -1",
    "--penalty.use-weight 1": "penalty.use-weight is not an option",
    "--stop.success 1.1": "stop.success must lie in (0, 1]",
    "--stop.min-episodes 200": "stop.min_episodes (200) must not exceed stop.window_episodes (100)",
    "--evaluation.episodes 0": "evaluation.episodes must be at least 1",
    "--env=": "env must name an environment",
    "--env-arg length": "env_args must be given as KEY=VALUE",
    "--env-arg a-b.c=1": "env_args.a_b.c must be named like a Python argument",
    "--run a --resume b": "resume: b is not a run folder, there is no such folder",
    "--resume .": "resume: . is not a run folder, it has no config.yaml",
    "--config missing.yaml": "missing.yaml cannot be read: No such file or directory",
    "corridor-long": "unexpected 'corridor-long'",
    "-s 1": "unexpected '-s'",
}


@pytest.mark.parametrize(("line", "message"), BAD_COMMAND_LINES.items())
def test_a_wrong_command_line_is_refused(
    line: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        load(line.split(" "), presets=tmp_path)
    captured = capsys.readouterr()
    assert leaving.value.code == 2
    assert message in captured.err
    assert captured.err.count("error:") == 1
    assert captured.out == ""


BAD_YAML = {
    "memory: {max_spann: 3}": "memory.max_spann in bad.yaml is not an option; did you mean memory.max_span?",
    "memory.max_spann: 3": "memory.max_spann in bad.yaml is not an option",
    "learning_rat: 0.001": "did you mean ppo.learning_rate or a2c.learning_rate?",
    "memory: 5": "memory in bad.yaml is a group of options",
    "seed: {a: 1}": "seed must be an integer, got {'a': 1} (in bad.yaml)",
    "seed: [1, 2]": "seed must be an integer, got [1, 2] (in bad.yaml)",
    "seed: null": "seed must be an integer, got None (in bad.yaml)",
    "seed: true": "seed must be an integer, got True (in bad.yaml)",
    "seed: 1.5": "seed must be an integer, got 1.5 (in bad.yaml)",
    "csv: 1": "csv must be true or false, got 1 (in bad.yaml)",
    "algo: no": "algo must be one of ppo, a2c, got False (in bad.yaml)",
    "num_envs: many": "num_envs must be an integer, got 'many' (in bad.yaml)",
    "ppo: {gamma: .nan}": "ppo.gamma must be a finite number, got nan (in bad.yaml)",
    "env_args: {length: [1]}": "must be one number, word, true or false, got [1] (in bad.yaml)",
    "env_args: {length: .inf}": "env_args.length must be one number, word, true or false, got inf",
    "memory: {ramp: 4000000}": "(memory.ramp is set in bad.yaml)",
    "seed: 1\nseed: 2": "the key 'seed' is given twice",
    "- seed": "bad.yaml must hold `option: value` lines, got list",
    "seed": "bad.yaml must hold `option: value` lines, got str",
    "seed: [": "bad.yaml is not valid YAML",
    "seed: !!python/object/apply:os.system ['true']": "bad.yaml is not valid YAML",
    "memory: &a {memory: *a}": "memory.memory in bad.yaml is not an option",
    "1: 2": "1 in bad.yaml is not an option",
    "? [seed]\n: 1": "bad.yaml",
    "seed: \x00": "bad.yaml",
    "seed: !!int one": "bad.yaml is not valid YAML: invalid literal for int()",
    "seed: !!timestamp 2001-13-01": "bad.yaml is not valid YAML: month must be in 1..12",
    f"seed: {'9' * 5000}": "bad.yaml is not valid YAML: Exceeds the limit",
    f"seed: 0x{'f' * 5000}": "seed must be an integer, got an integer of more than 100 digits (in bad.yaml)",
    "seed: [&a [x, x], &b [*a, *a], [*b, *b]]": "seed must be an integer, got [['x', 'x'], [['x', 'x']",
}


@pytest.mark.parametrize(("text", "message"), BAD_YAML.items())
def test_a_wrong_file_is_refused_by_name(
    text: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(text)
    with pytest.raises(SystemExit) as leaving:
        load(["--config", "bad.yaml"])
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("error:") == 1


def test_aliases_of_aliases_do_not_fill_the_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thirty lines that name 10**30 words."""
    path = tmp_path / "laughs.yaml"
    lines = [f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)]
    path.write_text("seed:\n  - &a0 [x]\n" + "".join(lines))
    with pytest.raises(SystemExit):
        load(["--config", str(path)])
    assert len(capsys.readouterr().err) < 10_000


def test_binary_files_and_folders_are_no_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path, message in ((tmp_path / "binary", "not UTF-8"), (tmp_path, "Is a directory")):
        with pytest.raises(SystemExit):
            load(["--config", str(path)])
        assert message in capsys.readouterr().err


@given(
    words=st.lists(st.sampled_from([f"--{option}" for option in OPTIONS]) | st.text(max_size=6), max_size=6)
)
def test_any_words_make_a_configuration_or_a_message(words: list[str]) -> None:
    if command_line.asks_for_help(words):
        return
    code: object = 0
    config = None
    try:
        config = load(words)
    except SystemExit as leaving:
        code = leaving.code
    assert code == 2 or (config is not None and from_dict(to_dict(config)) == config)


def test_help_explains_every_option_with_the_defaults_of_the_preset(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "CartPole-v1.yaml").write_text("total_steps: 4_321_987")
    with pytest.raises(SystemExit) as leaving:
        load(["--env", "CartPole-v1", "--help"], presets=tmp_path)
    text = capsys.readouterr().out
    assert leaving.value.code == 0
    for option in (*OPTIONS, "config"):
        assert f"--{option.replace('_', '-').removesuffix('s')}" in text
    assert "4321987" in text


def test_help_works_when_the_rest_of_the_line_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        load(["--help", "--nonsense"])
    assert leaving.value.code == 0
    assert "--memory.max-span" in capsys.readouterr().out


@pytest.mark.parametrize(
    "source", [schema, sequence_schema, model, run_config], ids=lambda source: source.__name__
)
def test_every_field_has_a_docstring(source: ModuleType) -> None:
    module = ast.parse(Path(str(source.__file__)).read_text())
    nested = {name for name in dir(source) if dataclasses.is_dataclass(getattr(source, name))}
    for node in module.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
                if not isinstance(statement, ast.AnnAssign):
                    continue
                kind = ast.unparse(statement.annotation)
                if kind not in nested and not kind.startswith("ClassVar"):
                    assert isinstance(following, ast.Expr), f"{node.name}.{ast.unparse(statement.target)}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class OtherProgram:
    """Options of another program."""

    episodes: int = 3
    """how many"""


def test_other_programs_use_the_same_parser(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.parse(OtherProgram, ["--episodes", "5"]) == OtherProgram(episodes=5)
    with pytest.raises(SystemExit):
        command_line.parse(OtherProgram, ["--episode", "5"])
    assert "did you mean episodes?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command_line.parse(OtherProgram, ["-h"])
    assert "how many" in capsys.readouterr().out


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Several:
    sizes: tuple[int, ...] = (1, 2)
    name: str = "a"


@pytest.mark.parametrize(
    ("line", "sizes"),
    [
        ("--sizes 4 8 --name b", (4, 8)),
        ("--name b --sizes=4 8", (4, 8)),
        ("--sizes 4", (4,)),
        ("--sizes 4 --sizes 8", (8,)),
        ("--name b", (1, 2)),
    ],
)
def test_an_option_may_take_several_values(line: str, sizes: tuple[int, ...]) -> None:
    assert command_line.parse(_Several, line.split()).sizes == sizes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--sizes", "sizes must be one or more, each an integer, got none"),
        ("--sizes --name b", "sizes must be one or more, each an integer, got none"),
        ("--sizes 4 many", "sizes must be an integer, got 'many'"),
        ("--name b c", "unexpected 'c'"),
    ],
)
def test_several_wrong_values_are_refused(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command_line.parse(_Several, line.split())
    assert message in capsys.readouterr().err


def test_options_of_other_memories_are_ignored() -> None:
    words = ["--memory.ramp", "2000"]
    for kind in ("transformer-xl", "compressive", "none"):
        assert load(["--memory", kind, *words]).memory.ramp == 2000


def test_direct_use_refuses_nan_and_names_the_option() -> None:
    with pytest.raises(ValueError, match=r"ppo\.learning_rate must be greater than 0, and finite, got nan"):
        schema.PPOConfig(learning_rate=float("nan"))
    with pytest.raises(ValueError, match=r"penalty\.weight must be at least 0, and finite, got inf"):
        schema.PenaltyConfig(weight=float("inf"))


def test_configurations_do_not_import_torch() -> None:
    program = (
        "import sys; from memory_suite.configs import agent_schema, sequence_schema; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", program]).returncode == 0


def test_every_setting_of_the_transformer_has_an_option() -> None:
    config = load(["--memory", "compressive", "--memory.size", "7", "--memory.max-span", "99"])
    chosen = model.transformer_settings(config.memory, config.policy)
    assert (chosen.memory, chosen.memory_size, chosen.max_span) == ("compressive", 7, 99)
    names = {field.name for group in (model.MemoryConfig, model.ModelConfig) for field in fields(group)}
    assert {"memory", "memory_size"} | names - {"kind", "size", "random_shortening"} == {
        field.name for field in fields(TransformerSettings)
    }
