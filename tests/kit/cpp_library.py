"""The C interface of the C++ library through ctypes, as ``cpp/include/trtprune/trtprune.h`` declares it."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

Callback = ctypes.CFUNCTYPE(c_int32, c_char_p, c_size_t, c_void_p)
HEADER = Path(__file__).parents[2] / "cpp/include/trtprune/trtprune.h"


class LoadOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("provider", c_char_p),
        ("threads", c_int32),
        ("verify", c_char_p),
        ("provider_options", c_void_p),
        ("provider_option_count", c_size_t),
        ("library", c_char_p),
    ]


class GenerateOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("keep", POINTER(c_int64)),
        ("keep_ratio", POINTER(c_double)),
        ("max_new_tokens", POINTER(c_int64)),
        ("temperature", POINTER(c_double)),
        ("top_k", POINTER(c_int64)),
        ("top_p", POINTER(c_double)),
        ("repetition_penalty", POINTER(c_double)),
        ("seed", POINTER(c_uint64)),
        ("stop", POINTER(c_char_p)),
        ("stop_count", c_size_t),
        ("system", c_char_p),
        ("ignore_eos", c_int32),
        ("raw_prompt", c_int32),
    ]


class Request(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("images", POINTER(c_void_p)),
        ("image_count", c_size_t),
        ("prompt", c_char_p),
        ("keep", POINTER(c_int64)),
        ("keep_ratio", POINTER(c_double)),
        ("system", c_char_p),
        ("raw_prompt", c_int32),
        ("max_new_tokens", POINTER(c_int64)),
        ("seed", POINTER(c_uint64)),
    ]


class Info(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        *(
            (name, c_char_p)
            for name in ["model_id", "family", "backend", "provider", "dtype", "weight_dtype", "method"]
        ),
        *((name, c_int64) for name in ["keep", "keep_least", "keep_most", "visual_tokens_least", "visual_tokens_most"]),
        ("capacity", c_int64),
        ("max_batch_size", c_int64),
    ]


class Failure(Exception):
    """An error of the library: its code, message and hint."""

    def __init__(self, code: int, message: str, hint: str) -> None:
        super().__init__(f"{code}: {message} ({hint})")
        self.code, self.message, self.hint = code, message, hint


class Library:
    """The functions by name, with handles as plain addresses."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
        for returned, name in re.findall(r"TRTPRUNE_API ([\w ]+\**) *(trtprune_\w+)\(", text):
            getattr(self.c, name).restype = {
                "int32_t": c_int32,
                "uint32_t": ctypes.c_uint32,
                "int64_t": c_int64,
                "double": c_double,
                "const char*": c_char_p,
                "const uint8_t*": c_void_p,
                "const int64_t*": POINTER(c_int64),
            }[returned.strip()]

    def call(self, name: str, *arguments: Any) -> None:
        """Calls ``trtprune_NAME`` with an error to fill behind the arguments.

        Raises:
            Failure: if it returns another code than 0.
        """
        error = c_void_p()
        code = getattr(self.c, f"trtprune_{name}")(*arguments, byref(error))
        if code == 0:
            assert not error
            return
        assert self.c.trtprune_error_code(error) == code
        failure = Failure(
            code, self.c.trtprune_error_message(error).decode(), self.c.trtprune_error_hint(error).decode()
        )
        assert self.c.trtprune_error_free(error) == 0
        raise failure

    def image(self, path: Path | str) -> c_void_p:
        handle = c_void_p()
        self.call("image_from_file", str(path).encode(), None, byref(handle))
        return handle

    def load(self, directory: Path | str, **options: Any) -> c_void_p:
        handle = c_void_p()
        self.call("vlm_load", str(directory).encode(), byref(filled(LoadOptions, options)), byref(handle))
        return handle

    def generate(
        self,
        vlm: c_void_p,
        images: Sequence[c_void_p],
        prompt: str,
        on_text: Callable[[bytes], int] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        result = c_void_p()
        asked = byref(filled(GenerateOptions, options))
        arguments = (vlm, handles(images), c_size_t(len(images)), prompt.encode(), asked, callback(on_text), None)
        self.call("vlm_generate", *arguments, byref(result))
        return self.take(result)

    def batch(self, vlm: c_void_p, rows: Sequence[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        requests = []
        for row in rows:
            images = row["images"]
            request = filled(Request, {name: value for name, value in row.items() if name != "images"})
            request.images, request.image_count = handles(images), len(images)
            requests.append(request)
        pointers = (POINTER(Request) * len(rows))(*map(ctypes.pointer, requests))
        results = (c_void_p * len(rows))()
        asked = byref(filled(GenerateOptions, options))
        self.call("vlm_generate_batch", vlm, pointers, c_size_t(len(rows)), asked, results)
        return [self.take(c_void_p(result)) for result in results]

    def chat(self, vlm: c_void_p, images: Sequence[c_void_p]) -> c_void_p:
        conversation = c_void_p()
        self.call("vlm_chat", vlm, handles(images), c_size_t(len(images)), None, byref(conversation))
        return conversation

    def ask(self, conversation: c_void_p, prompt: str, *, repick: bool = True, **options: Any) -> dict[str, Any]:
        result = c_void_p()
        asked = byref(filled(GenerateOptions, options))
        self.call(
            "conversation_ask", conversation, prompt.encode(), asked, int(repick), Callback(), None, byref(result)
        )
        return self.take(result)

    def take(self, result: c_void_p) -> dict[str, Any]:
        """The answer as ``run --json`` has it, after a look at each accessor; frees the handle."""
        answer: dict[str, Any] = json.loads(self.c.trtprune_result_json(result))
        for name in ("text", "finish_reason", "method"):
            assert getattr(self.c, f"trtprune_result_{name}")(result).decode() == answer[name]
        for name in ("visual_tokens", "kept_tokens", "prompt_tokens", "kv_cache_bytes", "time_to_first_token_ms"):
            assert getattr(self.c, f"trtprune_result_{name}")(result) == answer[name]
        for name, milliseconds in answer["timings_ms"].items():
            assert self.c.trtprune_result_timing_ms(result, name.encode()) == milliseconds
        assert self.c.trtprune_result_timing_ms(result, b"none") == -1
        count = c_size_t()
        ids = self.c.trtprune_result_token_ids(result, byref(count))
        assert ids[: count.value] == answer["token_ids"]
        kept = answer["kept_indices_per_image"]
        assert self.c.trtprune_result_image_count(result) == len(kept)
        for image, indices in enumerate(kept):
            rows = self.c.trtprune_result_kept_indices(result, c_size_t(image), byref(count))
            assert rows[: count.value] == indices
        assert not self.c.trtprune_result_kept_indices(result, c_size_t(len(kept)), byref(count))
        assert count.value == 0
        assert self.c.trtprune_result_free(result) == 0
        assert self.c.trtprune_result_text(result) is None
        return answer


def handles(values: Sequence[c_void_p]) -> Any:
    return (c_void_p * len(values))(*(value.value for value in values))


def callback(function: Callable[[bytes], int] | None) -> Any:
    return Callback() if function is None else Callback(lambda piece, _length, _data: function(piece))


def filled(kind: Any, values: dict[str, Any]) -> Any:
    """A structure with its size and these values; numbers go to where its pointers point."""
    result = kind(struct_size=ctypes.sizeof(kind))
    kinds = dict(kind._fields_)
    for name, value in values.items():
        if name == "stop":
            texts = [text.encode() for text in value]
            result.stop, result.stop_count = (c_char_p * len(texts))(*texts), len(texts)
        elif isinstance(value, str):
            setattr(result, name, value.encode())
        elif hasattr(kinds[name], "contents"):
            setattr(result, name, ctypes.pointer(kinds[name]._type_(value)))
        else:
            setattr(result, name, value)
    return result
