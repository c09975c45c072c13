"""The passes that ship with sparsefx, imported as `sparsefx.passes`."""

if __name__ != "sparsefx.passes":
    raise ImportError(
        f"this folder was imported as {__name__!r}: import it as 'sparsefx.passes', "
        "otherwise every class in it exists twice"
    )
