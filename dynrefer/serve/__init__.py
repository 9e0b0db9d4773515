"""`dynrefer serve --model MODEL`: a model of any family behind HTTP; docs/serving.md says how to call it.

gate.py     every request passes: key, size, time, log
app.py      the routes; chat.py those of OpenAI's form
schema.py, inputs.py, settings.py   what a request may hold -> examples with options
batching.py requests -> batches -> results, on the one thread that runs the model
"""
