"""What people look at: pages of one file each, without a server, with nothing from elsewhere.

dataset    the page of a dataset: what it shows, as plain records
charts     from numbers to the places of a chart's parts
rendering  from a template and what it shows to a file
templates  one for each page, on `page.html`; they show, and compute nothing
assets     one stylesheet for all pages, and at most one small script for each
"""
