"""Scores of tokens as vLLM gives them: to be run by its own interpreter, which has nothing of this project.

Takes a model folder and tokens with commas between; prints the logarithm of the probability of each but the first.
"""

import json
import sys

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt


def main() -> None:
    folder, tokens = sys.argv[1], [int(token) for token in sys.argv[2].split(",")]
    model = LLM(folder, dtype="bfloat16", enforce_eager=True, max_model_len=256, max_num_seqs=2, skip_mm_profiling=True)
    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    scored = model.generate(TokensPrompt(prompt_token_ids=tokens), asked)[0].prompt_logprobs
    found = [scores[token].logprob for scores, token in zip(scored[1:], tokens[1:], strict=True)]
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
