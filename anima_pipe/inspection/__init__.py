"""A dataset looked at as training will see it; `pages` shows what is found.

entries     what is known of a dataset and its pictures, as plain records
likeness    which pictures look alike: difference hashes, compared in bands
thumbnails  small copies of pictures and their hashes, decoded in worker processes
gather      from a survey to these records
"""
