"""Each prompt answered once by the teacher."""
