"""The model types that are known, by what they do; the words are `model_type` of transformers 5.23.

CAUSAL is transformers' own mapping of causal language models without encoders, translators, vision and audio.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CAUSAL = _words(
    """
    afmoe apertus arcee bailing_hybrid bamba biogpt bitnet bloom blt codegen cohere cohere2 cohere2_moe ctrl cwm dbrx
    deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 diffllama doge dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe
    falcon falcon_h1 falcon_mamba flex_olmo gemma gemma2 gemma3_text gemma3n_text gemma4_text glm glm4 glm4_moe
    glm4_moe_lite glm_moe_dsa gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite
    granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe
    hy_v3 hy_v4 hyperclovax internlm3 iquestcoder jais2 jamba jetmoe kimi_linear laguna lfm2 lfm2_moe lfm3 llama
    llama4_text longcat_flash mamba mamba2 mellum mimo_v2_flash minicpm3 minimax minimax_m2 ministral ministral3 mistral
    mixtral modernbert-decoder mpt nanochat nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt
    persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_moe
    qwen3_next qwen4_exp_text recurrent_gemma rwkv seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma xglm
    xlstm youtu zamba zamba2 zaya
    """
)

TIED = _words(
    """
    biogpt bloom cohere cohere2 cohere2_moe ctrl ernie4_5 ernie4_5_moe falcon falcon_mamba gemma gemma2 gemma3_text
    gemma3n_text gemma4_text gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox_japanese granite_swa jetmoe lfm2 lfm2_moe lfm3
    mamba minicpm3 modernbert-decoder mpt openai-gpt opt recurrent_gemma smollm3 starcoder2 vaultgemma xglm youtu zamba
    zamba2 zaya
    """
)
"""Those of CAUSAL whose output head is their input embeddings where their config does not say."""


UNUSUAL = ("afmoe", "deepseek_v4", "falcon", "jetmoe", "zamba", "zamba2")
"""Model types whose linear layers are classes of their own, are shared, or are not where their names say."""

MULTIPLIED = dict.fromkeys(("falcon_mamba", "jamba", "mamba"), "dt_proj")
"""A linear layer, by model type, whose weight transformers multiplies by without calling it: it stays in 16 bit."""

VISION, WRAPPER = "a vision model", "a language model that reads pictures too, which is not taken here yet"

OTHERS = {
    "an encoder, which writes no text": _words("""
    albert bert big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert electra ernie esm eurobert
    flaubert fnet funnel gte ibert jina_embeddings_v3 layoutlm longformer luke megatron-bert mobilebert modernbert
    mpnet mra nomic_bert nystromformer perceiver rembert roberta roberta-prelayernorm roc_bert roformer squeezebert
    tapas xlm xlm-roberta xlm-roberta-xl xmod yoso
    """),
    "an encoder-decoder model": _words("""
    bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt led longt5 m2m_100 marian mbart mt5 mvp
    nllb-moe pegasus pegasus_x plbart prophetnet switch_transformers t5 t5gemma umt5
    """),
    VISION: _words("""
    align altclip aria aya_vision beit bit blip blip-2 chameleon clip clipseg cohere2_vision convnext convnextv2 cvt
    deit detr dinov2 dinov3_vit efficientnet emu3 florence2 fuyu gemma3 gemma3n gemma4 git glm4v idefics idefics2
    idefics3 instructblip internvl janus kosmos-2 llama4 llava llava_next llava_onevision mistral3 mllama mobilenet_v2
    mobilevit ovis2 paligemma pix2struct qwen2_5_vl qwen2_vl qwen3_vl qwen3_vl_moe resnet sam segformer siglip siglip2
    smolvlm swin swinv2 t5gemma2 timm_wrapper trocr video_llava vision-encoder-decoder vit yolos
    """),
    "an audio model": _words("""
    audio-spectrogram-transformer bark csm data2vec-audio hubert moonshine moshi musicgen musicgen_melody parakeet_ctc
    pop2piano qwen2_5_omni qwen2_audio seamless_m4t seamless_m4t_v2 sew speech-encoder-decoder speech_to_text speecht5
    unispeech vits voxtral wav2vec2 wav2vec2-bert wavlm whisper
    """),
}

QUANT_METHODS = _words(
    """
    aqlm auto-round awq bitnet bitsandbytes compressed-tensors eetq fbgemm_fp8 fouroversix fp8 fp_quant gptq higgs hqq
    metal mxfp4 mxfp8 nvfp4 quanto quark sinq spqr torchao vptq
    """
)
"""What `quantization_config.quant_method` may say: the values that transformers 5.23 reads from safetensors."""


def family(model_type: str, config_keys: set[str]) -> str | None:
    """Say what a model is that is no causal language model, or None if nobody knows.

    Args:
        model_type: As its config says.
        config_keys: The names of its config's fields.
    """
    for words, types in OTHERS.items():
        if model_type in types:
            return WRAPPER if words == VISION and "text_config" in config_keys else words
    if "vision_config" in config_keys:
        return WRAPPER if "text_config" in config_keys else VISION
    return "an audio model" if "audio_config" in config_keys else None
