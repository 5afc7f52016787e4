"""An adapter as inference programs load it: its file, or a checkpoint with it baked in; verified.

`comfy` holds ComfyUI's published rules, `verification` compares with what they make of a file.
"""
