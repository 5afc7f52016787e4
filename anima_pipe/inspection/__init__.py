"""One page that shows a dataset as training will see it.

likeness    which pictures look alike: difference hashes, compared in bands
thumbnails  small copies of pictures and their hashes, decoded in worker processes
gather      from a survey to everything that the page says, as plain records
page        from these records to one HTML file that needs nothing else
"""
