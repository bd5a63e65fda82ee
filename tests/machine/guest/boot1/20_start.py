"""Register a real llama-server, start it, and ask it for a completion."""

from machine import HOME, check, ctl, http, need, properties, until, user

register = f"--path {HOME}/tiny.gguf --backend llamacpp --exec {HOME}/llama/llama-server"
limits = "--gpus none --memory 1G --cpu 1.5 --port auto"
need("register", user("cortexctl", "register", "tiny", *register.split(), *limits.split()).returncode, 0)
need("start", user("cortexctl", "start", "tiny").returncode, 0)
check("is-active", user("cortexctl", "is-active", "tiny").returncode, 0)
check("unit is active", properties("cortex-tiny.service")["ActiveState"], "active")
check("slice", properties("cortex-tiny.service")["Slice"], "cortex.slice")

status, answer = http(ctl("url", "tiny").strip() + "/v1/completions", {"prompt": "Hello", "max_tokens": 4})
check("completion", status, 200)
check("completion's tokens", answer["usage"]["completion_tokens"] if status == 200 else answer, 4)
check("logs", until(lambda: "listening on" in ctl("logs", "tiny")), True)  # lines arrive asynchronously
