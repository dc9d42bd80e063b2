"""The model types that are taken, and what the others are; the words are `model_type` of transformers.

Taken is what the installed transformers builds for writing text, of text alone or of pictures too, but for OTHERS.
"""

from typing import NamedTuple

from backend.models.native import picture_types, text_types


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SAME_AS = {"gpt-sw3": "gpt2", "shieldgemma2": "gemma3"}
"""Model types that transformers reads as another one."""


class Traits(NamedTuple):
    """What is otherwise with the models of a type.

    Attributes:
        converted: Whether transformers converts its layers to bitsandbytes' formats, each by itself.
        one_by_one: Whether transformers builds its experts as layers where they are in those formats.
        turned: Whether all experts lie in one tensor as [experts, in_features, out_features].
        says_turned: Whether its class says so, which PEFT reads.
        interleaved: Whether rows of gate and up take turns in that tensor.
        multiplied: A linear layer whose weight transformers multiplies by without calling it: it stays in 16 bit.
        in_kernels: One that is so multiplied by where its kernels are; PEFT refuses most.
        alone: Whether blocks are called with masks or biases of so many windows as go through: noted down of one.
    """

    converted: bool = True
    one_by_one: bool = False
    turned: bool = False
    says_turned: bool = False
    interleaved: bool = False
    multiplied: str = ""
    in_kernels: str = ""
    alone: bool = False


_MAMBA = Traits(in_kernels="out_proj")
_MAMBA_1 = Traits(in_kernels="out_proj", multiplied="dt_proj")
_LLAMA_4 = Traits(turned=True, one_by_one=True)

TRAITS = {
    "aria": Traits(turned=True, says_turned=True),
    "bamba": _MAMBA,
    "bloom": Traits(alone=True),
    "falcon": Traits(converted=False),
    "falcon_h1": _MAMBA,
    "falcon_mamba": _MAMBA_1,
    "gpt_oss": Traits(turned=True, says_turned=True, interleaved=True),
    "granitemoehybrid": _MAMBA,
    "jamba": Traits(multiplied="dt_proj"),
    "llama4": _LLAMA_4,
    "llama4_text": _LLAMA_4,
    "mamba": _MAMBA_1,
    "mamba2": _MAMBA,
    "nemotron_h": _MAMBA,
    "qwen4_exp_text": Traits(alone=True),
    "xglm": Traits(alone=True),
    "zamba": Traits(converted=False),
    "zamba2": Traits(converted=False, in_kernels="out_proj"),
}
"""By model type; of all others nothing is otherwise."""


def traits(model_type: object) -> Traits:
    """Return what is otherwise with the models of a type."""
    return TRAITS.get(str(model_type), Traits())


TOWERS_OF = {"gemma3n_vision": "timm"}
"""A package that a tower is built with, by the model type of the tower's own config."""

OTHERS = {
    "an encoder, which writes no text": _words("""
    albert bert bert-generation big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert electra ernie
    esm eurobert flaubert fnet funnel gte ibert jina_embeddings_v3 layoutlm longformer luke megatron-bert mobilebert
    modernbert mpnet mra nomic_bert nystromformer perceiver rembert roberta roberta-prelayernorm roc_bert roformer
    squeezebert tapas xlm xlm-roberta xlm-roberta-xl xlnet xmod yoso
    """),
    "an encoder-decoder model": _words("""
    bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder florence2 fsmt led longt5 m2m_100 marian mbart mt5
    mvp nllb-moe pegasus pegasus_x pix2struct plbart pp_formulanet prophetnet switch_transformers t5 t5gemma t5gemma2
    trocr udop umt5 vision-encoder-decoder
    """),
    "a vision model": _words("""
    align altclip beit bit blip blip-2 chameleon clip clipseg convnext convnextv2 cvt deit detr dinov2 dinov3_vit
    efficientnet emu3 evolla git idefics instructblip instructblipvideo janus kosmos-2 kosmos-2.5 mobilenet_v2
    mobilevit resnet sam segformer siglip siglip2 swin swinv2 timm_wrapper video_llava vit yolos
    """),
    "an audio model": _words("""
    audio-spectrogram-transformer bark csm data2vec-audio hubert moonshine moshi musicgen musicgen_melody parakeet_ctc
    pop2piano qwen2_audio seamless_m4t seamless_m4t_v2 sew speech-encoder-decoder speech_to_text speecht5 unispeech
    vits voxtral wav2vec2 wav2vec2-bert wavlm whisper
    """),
    "a model that writes text in other ways than token by token": _words("""
    cpmant diffusion_gemma gemma4_assistant gemma4_unified_assistant pi0
    """),
}

QUANT_METHODS = _words(
    """
    aqlm auto-round awq bitnet bitsandbytes compressed-tensors eetq fbgemm_fp8 fouroversix fp8 fp_quant gptq higgs hqq
    metal mxfp4 mxfp8 nvfp4 quanto quark sinq spqr torchao vptq
    """
)
"""What `quantization_config.quant_method` may say: the values that transformers 5.23 reads from safetensors."""


def is_taken(model_type: str) -> bool:
    """Return whether models of a type can be worked on."""
    known = model_type in text_types() or model_type in picture_types()
    return known and not any(model_type in types for types in OTHERS.values())


def family(model_type: str, config_keys: set[str]) -> str | None:
    """Say what a model is that is not taken, or None if nobody knows.

    Args:
        model_type: As its config says.
        config_keys: The names of its config's fields.
    """
    for words, types in OTHERS.items():
        if model_type in types:
            return words
    if "vision_config" in config_keys and "text_config" not in config_keys:
        return "a vision model"
    return "an audio model" if "audio_config" in config_keys else None
