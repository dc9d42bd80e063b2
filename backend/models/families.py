"""The model types that are taken, and what the others are; the words are `model_type` of transformers.

Taken is what the installed transformers builds for writing text, of text alone or of pictures too, but for OTHERS.
"""

from backend.models.native import picture_types, text_types


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SAME_AS = {"gpt-sw3": "gpt2", "shieldgemma2": "gemma3"}
"""Model types that transformers reads as another one."""

UNUSUAL = ("falcon", "zamba", "zamba2")
"""Model types whose layers transformers does not convert to bitsandbytes' formats, or whose blocks share them."""

MULTIPLIED = dict.fromkeys(("falcon_mamba", "jamba", "mamba"), "dt_proj")
"""A linear layer, by model type, whose weight transformers multiplies by without calling it: it stays in 16 bit."""

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
