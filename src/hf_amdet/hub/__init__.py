"""Everything that talks to the Hugging Face Hub. Knows no torch.

`resolve` names what is in a repo at one commit, `download` brings it here verified,
`card` edits a model card as text, `publish` sends card and report.
"""
