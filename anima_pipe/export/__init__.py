"""What inference programs load, verified: an adapter's file, or a checkpoint, baked into or anew.

`comfy` holds ComfyUI's published rules, `verification` compares with what they make of a file.
"""
