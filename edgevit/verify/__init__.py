"""Claims about a build, each with a verifier that can fail it.

A verifier is given runners and what a runtime tells about itself; it knows no runtime. Its result is plain data for
the manifest, with a `summary` for people.
"""
