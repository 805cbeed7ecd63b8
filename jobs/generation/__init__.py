"""Batch generation, piece by piece. `jobs.generate` is the recipe that puts them together.

sampling      how answers are drawn: parameters of the job and of single requests
requests      rows of a file as requests: tokens, parameters, adapter; or why a row cannot be answered
answers       an answer as a line of the output: plain, or as OpenAI's batches have it
results       the file of answers: appended, resumed, put in order
memory        how many sequences go through the model at once, from free memory
drawing       the next token of each sequence; the same draw in whatever company (torch)
batches       engine: longest first, padded (torch)
continuous    engine: transformers' continuous batching (torch)
vllm_engine   engine: vLLM in its own environment; jobs.vllm_driver runs there
"""
