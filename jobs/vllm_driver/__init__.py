"""A program for another environment: `PYTHON jobs/vllm_driver ORDER`, where that Python has vLLM and nothing of ours."""
