"""Pictures in a chat: which are taken, that nothing is fetched for them, and that the model is shown what was sent."""

import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from backend.errors import JobError, SpecError
from backend.serve import pictures
from backend.serve.chat import ChatOptions, stream, turn
from backend.serve.server import Server
from backend.serve.servers import Servers
from backend.settings import Settings
from tests.support.pictures import QWEN, data_url, encoded, make_gemma, make_qwen, shown

SHORT = ChatOptions(max_tokens=8, temperature=0)


def bomb(side: int) -> bytes:
    """Return a PNG of some bytes that says it is so wide and high."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1, 1), (60, 40), (255, 257), (3000, 2)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("png", {}),
        ("jpeg", {}),
        ("jpeg", {"progressive": True, "comment": b"\xff\xc0" * 99, "exif": b"Exif\0\0" + b"\xff" * 99}),
        ("webp", {}),
        ("webp", {"lossless": True}),
        ("webp", {"exif": b"Exif\0\0MM\0*\0\0\0\x08"}),
    ],
    ids=["png", "jpeg", "jpeg-with-more", "webp", "webp-lossless", "webp-extended"],
)
def test_the_size_of_a_picture_is_read_as_pillow_reads_it(kind, options, size):
    data = encoded(kind, size, **options)
    assert pictures.header(data) == (kind, *size)
    assert pictures.fault(data) is None
    for length in range(0, min(len(data), 300), 3):
        assert pictures.header(data[:length]) in (None, (kind, *size))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not a valid PNG, JPEG or WebP"),
        (encoded("gif"), "is not a valid PNG, JPEG or WebP"),
        (encoded("tiff"), "is not a valid PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a valid PNG, JPEG or WebP"),
        (bomb(0), "is not a valid PNG, JPEG or WebP"),
        (bomb(4097), "has 4097 × 4097 pixels, 16.8 million at most"),
        (bomb(2**31 - 1), "pixels, 16.8 million at most"),
        (b"\xff\xd8" + b"\xff\xfe\0\2" * 10**6 + encoded("jpeg")[2:], "is not a valid PNG, JPEG or WebP"),
        (encoded() + b"\0" * pictures.BYTES, "has more than 6 MB"),
    ],
    ids=["nothing", "gif", "tiff", "svg", "empty", "large", "bomb", "endless", "heavy"],
)
def test_what_is_no_picture_or_too_large_a_one_is_refused_before_it_is_decoded(data, words, tmp_path):
    file = tmp_path / "it.png"
    file.write_bytes(data)
    assert words in pictures.fault(data)
    with pytest.raises(SpecError, match=r"'it\.png' (is|has) "):
        turn("What is it?", [file])
    assert pictures.url_fault(data_url(data))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"none\.png' cannot be read as a picture"):
        turn("What is it?", [tmp_path / "none.png"])


def test_pictures_for_a_model_that_reads_none_or_too_many_are_refused_before_they_are_sent(tiny_model, tmp_path):
    blind = Server(folder=tiny_model, engine="vllm", base_url="http://127.0.0.1:9/v1", key="none")
    with pytest.raises(SpecError, match=f"'{tiny_model.name}' reads no pictures: ask it without one"):
        next(stream(blind, shown(data_url(encoded())), SHORT))
    seeing = blind.model_copy(update={"folder": make_gemma(tmp_path / "gemma")})
    with pytest.raises(SpecError, match="has 5 pictures, 4 at most: start a new one"):
        next(stream(seeing, shown(data_url(encoded())) * 5, SHORT))


def test_a_model_reads_pictures_where_what_prepares_them_lies_beside_it(tmp_path):
    server = Server(folder=make_gemma(tmp_path / "gemma"), engine="vllm", base_url="http://127.0.0.1:9/v1", key="none")
    assert server.sees
    (server.folder / "processor_config.json").unlink()
    assert not server.sees


@pytest.fixture
def serve(tmp_path):
    """Serve a folder, and give it a question of one picture; returns its status, its words, and the answer's tokens."""
    (tmp_path / "data").mkdir()
    servers = Servers(Settings(data=tmp_path / "data", cancel_seconds=5))

    def served(folder, engine="transformers"):
        servers.open(folder, engine)
        server = servers.wait(folder, 120)

        def ask(messages):
            body = {"messages": messages, "max_tokens": 8, "temperature": 0, "return_token_ids": True}
            headers = {"Authorization": f"Bearer {server.key}"}
            answer = httpx.post(server.base_url + "/chat/completions", json=body, headers=headers, timeout=60)
            return answer.status_code, answer.text, answer.json()

        return server, ask

    yield served
    servers.stop()


@pytest.fixture
def listening():
    """The requests that an address on this machine hears."""
    heard = []

    class Heard(BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(encoded())

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Heard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", heard
        server.shutdown()


def refuses_addresses(ask, listening, folder):
    """Ask about pictures that lie elsewhere; none of them may be opened."""
    place, heard = listening
    (folder / "local.png").write_bytes(encoded())
    for url in (f"http://{place}/a.png", f"HTTP://{place}/b.png", f"//{place}/c.png", f"{folder}/local.png",
                f"file://{folder}/local.png", f"data:text/plain;base64,http://{place}/d.png"):  # fmt: skip
        status, words, _ = ask(shown(url))
        assert status == 400
        assert "no address is fetched" in words
    assert httpx.get(f"http://{place}/seen").status_code == 200
    assert heard == ["/seen"]


@pytest.mark.real
def test_a_model_is_shown_what_was_sent_and_nothing_is_fetched(serve, listening, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = make_gemma(tmp_path / "gemma")
    server, ask = serve(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    processor = AutoProcessor.from_pretrained(folder)
    answers = []
    for color, kind in (("red", "jpeg"), ("blue", "png")):
        data = encoded(kind, color=color)
        status, _, answer = ask(shown(data_url(data, kind)))
        assert status == 200
        file = tmp_path / f"{color}.{kind}"
        file.write_bytes(data)
        asked = [{"role": "user", "content": [{"type": "image", "url": str(file)},
                                              {"type": "text", "text": "What is it?"}]}]  # fmt: skip
        inputs = processor.apply_chat_template(
            asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert answer["prompt_token_ids"] == inputs["input_ids"][0].tolist()
        written = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer["choices"][0]["token_ids"] == written.tolist()
        answers.append(written.tolist())
        streamed = list(stream(server, [turn("What is it?", [file])], SHORT))[-1]
        assert streamed.context == inputs["input_ids"].shape[1] + len(written)
    assert answers[0] != answers[1]

    refuses_addresses(ask, listening, folder)
    torn = encoded("png", (800, 800))
    for data in (torn[: len(torn) // 2], bomb(4096)):  # with a header that says nothing wrong
        status, words, _ = ask(shown(data_url(data)))
        assert (status, "cannot be decoded: save it again" in words) == (400, True)
    with pytest.raises(JobError, match=r"cannot be decoded: save it again\.$"):
        next(stream(server, shown(data_url(torn[:2000])), SHORT))


@pytest.mark.real
def test_a_model_that_takes_films_too_is_served_without_torchvision(serve, tmp_path):
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoTokenizer
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    folder = make_qwen(tmp_path / "qwen")
    _, ask = serve(folder)
    assert ask([{"role": "user", "content": "hello"}])[0] == 200
    file = tmp_path / "red.png"
    file.write_bytes(encoded())
    answer = ask(shown(data_url(encoded())))[2]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    pixels = Qwen2VLImageProcessorPil.from_pretrained(folder)(Image.open(file), return_tensors="pt")
    pieces = int(pixels["image_grid_thw"].prod()) // 4
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],
        tokenize=False, add_generation_prompt=True,
    )  # fmt: skip
    ids = tokenizer(text.replace(QWEN["image_token"], QWEN["image_token"] * pieces), return_tensors="pt")["input_ids"]
    assert answer["prompt_token_ids"] == ids[0].tolist()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    kinds = (ids == tokenizer.convert_tokens_to_ids(QWEN["image_token"])).int()
    with torch.no_grad():
        written = model.generate(input_ids=ids, **pixels, mm_token_type_ids=kinds, max_new_tokens=8, do_sample=False)
    assert answer["choices"][0]["token_ids"] == written[0, ids.shape[1] :].tolist()


@pytest.mark.real
def test_a_model_whose_pictures_torchvision_alone_prepares_still_takes_text(serve, tmp_path):
    folder = make_gemma(tmp_path / "gemma")
    settings = folder / "processor_config.json"
    settings.write_text(settings.read_text().replace("Gemma3ImageProcessor", "Llama4ImageProcessorFast"))
    _, ask = serve(folder)
    assert ask([{"role": "user", "content": "hello"}])[0] == 200
    status, words, _ = ask(shown(data_url(encoded())))
    assert (status, "transformers lacks torchvision here" in words) == (400, True)
