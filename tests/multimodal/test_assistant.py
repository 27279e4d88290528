from pathlib import Path

import pytest
import torch

from multimodal import Assistant, Image, MultimodalModel, load
from multimodal.checkpoint import describe, save_parts, save_weights
from multimodal.media import MediaReader
from tests.multimodal import tiny
from tests.multimodal.tiny import TEXT, Letters, photo
from text_backbone import Sampling, load_backbone, load_tokenizer

CAT, DOG = Image(photo(1)), Image(photo(2))


@pytest.fixture
def assistant(model: MultimodalModel) -> Assistant:
    return Assistant(model, Letters())


@pytest.fixture
def run(model: MultimodalModel, text_folder: Path, tmp_path: Path) -> Path:
    save_parts(tmp_path, describe(model, text=str(text_folder), caption_prompt="Image caption:"))
    save_weights(tmp_path, model)
    return tmp_path


def test_a_reply_is_its_stream_joined(assistant: Assistant) -> None:
    for prompt in (["what", CAT, "is it"], "only words", CAT):
        assert assistant.reply(prompt, max_new=12) == "".join(assistant.stream(prompt, max_new=12)).strip()
        assert (
            assistant.reply(prompt, max_new=12, raw=True)
            == "".join(assistant.stream(prompt, max_new=12, raw=True)).strip()
        )


def test_a_real_tokenizers_reply_is_its_stream_joined_to_the_letter(run: Path) -> None:
    loaded = load(run)
    for seed in range(4):
        prompt = [Image(photo(seed)), "what is it"]
        assert "".join(loaded.stream(prompt, max_new=16)) == loaded.reply(prompt, max_new=16)


def test_a_batch_answers_each_prompt_as_it_is_answered_alone(assistant: Assistant) -> None:
    prompts = [["look", CAT, "what"], "only words", [CAT, DOG, "two of them, and a longer question"], [DOG]]
    together = assistant.batch(prompts, max_new=10)
    assert together == [assistant.reply(prompt, max_new=10) for prompt in prompts]
    assert assistant.batch([]) == []


def test_answers_depend_on_the_picture(assistant: Assistant) -> None:
    answers = {assistant.reply([Image(photo(seed)), "what"], max_new=8) for seed in range(4)}
    assert len(answers) > 1


def test_a_generated_token_is_the_likeliest_after_the_prompt_and_what_was_generated(assistant: Assistant) -> None:
    """The cache and what new tokens see agree with a reading of everything at once."""
    prompt = ["look", CAT, "what"]
    answer = assistant.reply(prompt, max_new=6, raw=True)
    read: list = [*prompt]
    for expected in Letters().encode(answer):
        _, logits = assistant.logits(read, raw=True)
        assert int(logits[-1].argmax()) == expected
        read.append(Letters().decode([expected]))


def test_sampling_is_repeatable_by_its_seed(assistant: Assistant) -> None:
    sampling = Sampling(temperature=2.0, seed=3)
    one, again = (assistant.reply([CAT, "what"], max_new=10, sampling=sampling) for _ in range(2))
    assert one == again


def test_a_chat_remembers_its_turns_and_its_pictures(assistant: Assistant) -> None:
    chat = assistant.chat(system="be brief")
    first = chat.say([CAT, "what"], max_new=5)
    second = "".join(chat.stream("and now", max_new=5))
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    asked = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [CAT, "what"]},
        {"role": "assistant", "content": first.strip()},
        {"role": "user", "content": ["and now"]},
    ]
    assert chat.messages[:-1] == asked
    assert second == "".join(assistant.answer(asked, max_new=5, sampling=None))
    without = [asked[0], {"role": "user", "content": ["what"]}, *asked[2:]]
    shown = assistant.model(_batch(assistant, asked), every_position=True)[0, -1]
    unseen = assistant.model(_batch(assistant, without), every_position=True)[0, -1]
    assert not torch.allclose(shown, unseen)


def _batch(assistant: Assistant, messages: list):
    return assistant.media.batch([tiny.reader().dialog(messages)])


def test_a_turn_that_was_not_read_to_its_end_was_not_said(assistant: Assistant) -> None:
    chat = assistant.chat()
    pieces = chat.stream("hello", max_new=5)
    next(pieces)
    pieces.close()
    assert chat.messages == []


def test_logits_have_one_placeholder_a_picture(assistant: Assistant) -> None:
    tokens, logits = assistant.logits(["a", CAT, DOG, "b", CAT])
    assert int((tokens == TEXT.vocabulary).sum()) == 3
    assert logits.shape == (len(tokens), TEXT.vocabulary)
    raw, _ = assistant.logits(["a", CAT], raw=True)
    assert raw.tolist() == [0, *Letters().encode("a"), TEXT.vocabulary]


def test_logits_of_text_are_those_of_the_bare_model(assistant: Assistant) -> None:
    tokens, logits = assistant.logits("some words")
    assert torch.equal(logits, tiny.text_model()(tokens[None])[0])


def test_detach_gives_the_bare_model(run: Path, text_folder: Path) -> None:
    loaded = load(run)
    tokens, _ = loaded.logits("some words")
    loaded.reply([CAT, "what"], max_new=3)
    assert torch.equal(loaded.detach()(tokens[None]), load_backbone(text_folder)(tokens[None]))


def test_a_backbone_alone_is_plain_text(text_folder: Path) -> None:
    plain = load(text_folder)
    tokens = torch.tensor([load_tokenizer(text_folder).dialog([{"role": "user", "content": "hi"}])])
    assert torch.equal(plain.logits("hi")[0], tokens[0])
    assert torch.equal(plain.logits("hi")[1], load_backbone(text_folder)(tokens)[0])
    assert plain.reply("hi", max_new=4) == load(text_folder).reply("hi", max_new=4)
    with pytest.raises(ValueError, match="no image encoder; load it with an image adapter"):
        plain.reply([CAT, "hi"])


def test_a_run_is_its_backbone_with_its_adapter(run: Path, text_folder: Path) -> None:
    one, other = load(run), load(text_folder, adapters=[run])
    prompt = [CAT, "what"]
    assert torch.equal(one.logits(prompt)[1], other.logits(prompt)[1])
    assert one.reply(prompt, max_new=6) == other.reply(prompt, max_new=6)


def test_a_caption_is_asked_for_in_the_words_of_the_training(assistant: Assistant) -> None:
    found = assistant.caption([CAT, [DOG]], max_new=6)
    assert found == [assistant.reply([one, "Image caption:"], raw=True, max_new=6) for one in (CAT, DOG)]


def test_what_cannot_be_read_is_an_error_with_its_reason(assistant: Assistant, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="is no picture"):
        assistant.reply([Image(tmp_path / "x.png"), "what"])
    with pytest.raises(ValueError, match="empty"):
        assistant.reply([])
    with pytest.raises(ValueError, match="shorten it"):
        assistant.reply("x" * 1000)


def test_a_picture_is_encoded_once_while_it_is_remembered(model: MultimodalModel, monkeypatch) -> None:
    pictures = MediaReader(model, keep=2)
    encoded: list[int] = []
    encoder = model.encoders["image"]
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda tiles, *more: encoded.append(len(tiles)) or forward(tiles, *more))
    rows = [tiny.reader().raw([Image(photo(seed)), "x"]) for seed in (1, 2, 1)]
    batch = pictures.batch(rows)
    assert sum(encoded) == 2
    assert torch.equal(pictures.batch(rows).features, batch.features)  # type: ignore[arg-type]
    assert sum(encoded) == 2
    pictures.batch([tiny.reader().raw([Image(photo(3)), "x"])])
    pictures.batch(rows[2:])
    assert sum(encoded) == 3
    pictures.batch(rows[1:2])
    assert sum(encoded) == 4


def test_pictures_of_several_tiles_are_seen_whole(tmp_path: Path) -> None:
    assistant = Assistant(tiny.composed(tmp_path / "eye", tiles=4), Letters())
    wide = Image(photo(5, size=(200, 90)))
    together = assistant.batch([[wide, CAT, "x"], [CAT, "y"]], max_new=6)
    assert together == [assistant.reply([wide, CAT, "x"], max_new=6), assistant.reply([CAT, "y"], max_new=6)]
    per_tile = assistant.model.encoders["image"].per_tile
    assert assistant.media.batch([tiny.reader().raw([wide])]).index.shape[1] > per_tile  # type: ignore[operator]
