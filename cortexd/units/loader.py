"""What changes how any program starts, whoever runs it."""

MISLEADING = (
    *("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "LD_BIND_NOW", "LD_BIND_NOT", "LD_DEBUG", "LD_DEBUG_OUTPUT"),
    *("LD_DYNAMIC_WEAK", "LD_HWCAP_MASK", "LD_ORIGIN_PATH", "LD_PREFER_MAP_32BIT_EXEC", "LD_PROFILE"),
    *("LD_PROFILE_OUTPUT", "LD_SHOW_AUXV", "LD_TRACE_LOADED_OBJECTS", "LD_USE_LOAD_BIAS", "LD_VERBOSE", "LD_WARN"),
    *("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_ARENA_TEST", "MALLOC_CHECK_", "MALLOC_MMAP_MAX_"),
    *("MALLOC_MMAP_THRESHOLD_", "MALLOC_PERTURB_", "MALLOC_TOP_PAD_", "MALLOC_TRACE", "MALLOC_TRIM_THRESHOLD_"),
    *("GCONV_PATH", "LOCPATH", "LANG", "LC_ALL", "LC_CTYPE"),
)
"""Variables of ld.so(8), mallopt(3), iconv and locale(7). Those of Python's own it passes over with -I."""
